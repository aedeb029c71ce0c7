/**
 * The C code under AddressSanitizer and UndefinedBehaviorSanitizer: every `*_test.c` in this folder is a program of its
 * own, linked with all of cffi/, that exits with 0 when all is well.
 */
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { $ } from "bun";
import { CFLAGS, compile, LIBRARIES, SHIM_SOURCES } from "../../build.ts";

setDefaultTimeout(120_000);
const SANITIZERS =
  "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -O1 -g".split(" ");
const programs = readdirSync(import.meta.dir)
  .filter((name) => name.endsWith("_test.c"))
  .sort();

let folder: string;
const objects = new Map<string, string>();
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), "overlaybd-sanitize-"));
  const sources = [...SHIM_SOURCES, ...programs.map((name) => join(import.meta.dir, name))];
  const flags = [...CFLAGS, ...SANITIZERS, "-I", join(import.meta.dir, "../../cffi")];
  const compiled = await compile(sources, flags);
  for (const [i, source] of sources.entries()) objects.set(basename(source), compiled[i]);
});
afterAll(() => rmSync(folder, { recursive: true }));

for (const name of programs) {
  test(name, async () => {
    const parts = [name, ...SHIM_SOURCES.map((source) => basename(source))].map((part) => objects.get(part));
    const program = join(folder, basename(name, ".c"));
    await $`gcc ${SANITIZERS} ${parts} -o ${program} ${LIBRARIES}`;
    const child = Bun.spawn([program], {
      cwd: folder,
      env: { ...process.env, ASAN_OPTIONS: "", UBSAN_OPTIONS: "print_stacktrace=1" },
      stdin: "ignore",
      stdout: "pipe",
      stderr: "pipe",
      timeout: 100_000,
    });
    const [out, err] = await Promise.all([child.stdout.text(), child.stderr.text(), child.exited]);
    // What a machine lacks (an I/O engine, say) the programs tell.
    if (out !== "") console.log(`${name}: ${out.trim().replaceAll("\n", "; ")}`);
    expect({ exitCode: child.exitCode, signal: child.signalCode, err }).toEqual({
      exitCode: 0,
      signal: null,
      err: "",
    });
  });
}
