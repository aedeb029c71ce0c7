import { expect, test } from "bun:test";
import { resolve } from "node:path";
import { $ } from "bun";
import { wrongImports } from "./imports.ts";

const root = resolve(import.meta.dir, "../..");
const bin = (name: string) => resolve(root, "node_modules/.bin", name);

test("types are right under strict TypeScript", async () => {
  const { exitCode, stdout } = await $`${bin("tsc")} --noEmit`.cwd(root).nothrow().quiet();
  expect(stdout.toString()).toBe("");
  expect(exitCode).toBe(0);
});

test("Biome finds nothing", async () => {
  const { exitCode, stderr } = await $`${bin("biome")} check --error-on-warnings .`
    .cwd(root)
    .nothrow()
    .quiet();
  expect(exitCode === 0 ? "" : stderr.toString()).toBe("");
});

test("imports point downwards", async () => {
  expect(await wrongImports()).toEqual([]);
});
