/**
 * The two layers that conversion is measured with, made once from the content of real Debian packages and kept under
 * build/bench: `small`, 61,000 small entries in a tar of about 497 MB, and `large`, large files in about 1.95 GB.
 */
import { closeSync, existsSync, mkdirSync, openSync, readSync, renameSync, rmSync, writeSync } from "node:fs";
import { join } from "node:path";
import { $ } from "bun";
import { unpackPackages } from "../fixtures/images.ts";
import { random } from "../fixtures/random.ts";

export type InputName = "small" | "large";

const folder = join(import.meta.dir, "../../build/bench");
const PACKAGES = [
  "python3",
  "clang",
  "rustc",
  "golang-go",
  "llvm-14-dev",
  "g++",
  "git",
  "perl",
  "redis-server",
  "nginx",
];

/** Path of a tar.gz (gzip -6); made on first use, which takes a few minutes. */
export async function benchInput(name: InputName): Promise<string> {
  const target = join(folder, `${name}.tar.gz`);
  if (existsSync(target)) return target;
  mkdirSync(folder, { recursive: true });
  const tree = join(folder, "packages");
  if (!existsSync(tree)) {
    mkdirSync(`${tree}.part`, { recursive: true });
    await unpackPackages(`${tree}.part`, PACKAGES);
    renameSync(`${tree}.part`, tree);
  }
  const root = join(folder, `${name}.${process.pid}`);
  mkdirSync(root);
  try {
    if (name === "small") cutIntoSmallFiles(await regularFiles(tree, 4096), root, 61_000, 497_000_000);
    else copyWhole(await regularFiles(tree, 1 << 20), root, 1_950_000_000);
    await $`tar --create --sort=name --numeric-owner --mtime=@1700000000 --directory ${root} . | gzip -6 -n > ${target}.part`;
    renameSync(`${target}.part`, target);
  } finally {
    rmSync(root, { recursive: true, force: true });
  }
  return target;
}

async function regularFiles(tree: string, smallest: number): Promise<string[]> {
  const listing = await $`find ${tree} -type f -size +${smallest - 1}c`.text();
  return listing.trim().split("\n").sort();
}

/** Writes `entries` members, every tenth a directory, whose content is consecutive pieces of `sources`. */
function cutIntoSmallFiles(
  sources: readonly string[],
  root: string,
  entries: number,
  tarBytes: number,
): void {
  const next = random(1);
  const files = Math.floor(entries * 0.9);
  // A member costs its header and on average half a block of padding besides its content.
  const average = (tarBytes - entries * 512 - files * 256) / files;
  const content = concatenated(sources);
  let directory = root;
  for (let i = 0, made = 0; i < entries; i++) {
    if (i % 10 === 0) {
      directory = join(root, `d${Math.floor(i / 1000)}`, `d${i}`);
      mkdirSync(directory, { recursive: true });
      continue;
    }
    // Exponentially distributed, as sizes in real images roughly are.
    const size = Math.min(Math.floor(-average * Math.log(1 - next())), 30 * average);
    const fd = openSync(join(directory, `f${made++}`), "w");
    writeSync(fd, content(size));
    closeSync(fd);
  }
}

function copyWhole(sources: readonly string[], root: string, tarBytes: number): void {
  const content = concatenated(sources);
  for (let total = 0, i = 0; total < tarBytes; i++) {
    const size = Math.min((5 + (i % 8) * 5) << 20, tarBytes - total);
    const fd = openSync(join(root, `large${i}`), "w");
    for (let at = 0; at < size; at += 1 << 20) writeSync(fd, content(Math.min(1 << 20, size - at)));
    closeSync(fd);
    total += size;
  }
}

/** A reader of all sources one after another, starting over at the end. */
function concatenated(sources: readonly string[]): (size: number) => Uint8Array {
  let index = 0;
  let fd = openSync(sources[0] as string, "r");
  return (size) => {
    const bytes = new Uint8Array(size);
    for (let at = 0; at < size; ) {
      const n = readSync(fd, bytes, at, size - at, null);
      at += n;
      if (n > 0) continue;
      closeSync(fd);
      index = (index + 1) % sources.length;
      fd = openSync(sources[index] as string, "r");
    }
    return bytes;
  };
}

if (import.meta.main) for (const name of ["small", "large"] as const) console.log(await benchInput(name));
