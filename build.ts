/**
 * Builds everything: the C shim and the one executable.
 *
 *   bun build.ts            build/shim.so, then dist/overlaybd
 *   bun build.ts shim       build/shim.so only (what `bun test` and `bun src/main.ts` load)
 */

import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, statSync } from "node:fs";
import { dirname, join } from "node:path";
import { $ } from "bun";

const root = import.meta.dir;
const cffi = join(root, "cffi");
const deps = join(root, "build/deps");
/** What the shim is compiled from. */
export const SHIM_SOURCES: readonly string[] = filesOf(cffi, ".c");
/** How the shim is compiled. */
export const CFLAGS = [
  ..."-std=c11 -O2 -fPIC -fvisibility=hidden -ffunction-sections -fdata-sections".split(" "),
  ..."-Wall -Wextra -Werror -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64 -DOPENSSL_SUPPRESS_DEPRECATED".split(" "),
  // The libraries' own headers are not held to our warnings.
  "-isystem",
  join(deps, "include"),
];
const LDFLAGS =
  "-shared -Wl,--exclude-libs,ALL -Wl,-z,defs -Wl,-z,relro,-z,now -Wl,--gc-sections -Wl,--strip-all".split(
    " ",
  );
/** What it is linked with. */
export const LIBRARIES = [
  "-L",
  join(deps, "lib"),
  ..."ext2fs com_err isal lz4 zstd uring crypto".split(" ").map((l) => `-l:lib${l}.a`),
];

/**
 * Compiles C sources side by side and returns their objects. An object's name is the hash of all that goes into it, so an
 * unchanged one is kept.
 */
export async function compile(sources: readonly string[], flags: readonly string[]): Promise<string[]> {
  mkdirSync(join(root, "build/objects"), { recursive: true });
  const folders = new Set([cffi, ...sources.map((source) => dirname(source))]);
  const headers = [...folders].flatMap((folder) => filesOf(folder, ".h")).map((path) => readFileSync(path));
  return Promise.all(
    sources.map(async (source) => {
      const inputs = [flags.join(" "), ...headers, readFileSync(source)];
      const key = createHash("sha256");
      for (const input of inputs) key.update(`${input.length} `).update(input);
      const object = join(root, `build/objects/${key.digest("hex").slice(0, 16)}.o`);
      if (!existsSync(object)) {
        const partial = `${object}.${process.pid}`;
        await $`gcc ${flags} -c ${source} -o ${partial}`;
        renameSync(partial, object);
      }
      return object;
    }),
  );
}

/** Paths of the files in a folder whose names end so, in order. */
function filesOf(folder: string, ending: string): string[] {
  return readdirSync(folder)
    .filter((name) => name.endsWith(ending))
    .sort()
    .map((name) => join(folder, name));
}

async function buildShim(): Promise<void> {
  await $`${join(cffi, "deps")}`;
  const objects = await compile(SHIM_SOURCES, CFLAGS);
  const target = join(root, "build/shim.so");
  const inputs = createHash("sha256")
    .update([...objects, ...LDFLAGS, ...LIBRARIES].sort().join(" "))
    .digest("hex");
  const stamp = join(root, "build/shim.inputs");
  if (existsSync(target) && existsSync(stamp) && readFileSync(stamp, "utf8") === inputs) return;
  const partial = `${target}.${process.pid}`;
  await $`gcc ${LDFLAGS} ${objects} -o ${partial} ${LIBRARIES}`;
  renameSync(partial, target);
  await Bun.write(stamp, inputs);
}

async function buildExecutable(): Promise<void> {
  const target = join(root, "dist/overlaybd");
  const outfile = `${target}.${process.pid}`;
  await Bun.build({
    entrypoints: [join(root, "src/main.ts")],
    target: "bun",
    minify: true,
    format: "esm",
    bytecode: true,
    sourcemap: "none",
    // Without these a daemon started in a foreign directory would run that directory's configuration.
    compile: { outfile, autoloadDotenv: false, autoloadBunfig: false },
  });
  await ignoreRuntimeVariables(outfile);
  renameSync(outfile, target);
  const mebibytes = statSync(target).size / 2 ** 20;
  console.log(`dist/overlaybd ${mebibytes.toFixed(1)} MiB`);
}

/**
 * The runtime inside the executable obeys environment variables that would let anybody who can set a root daemon's
 * environment run code in it (BUN_INSPECT opens a port for a debugger), and offers no switch to turn that off. So the
 * names it asks for are changed to ones that no environment can contain.
 */
async function ignoreRuntimeVariables(executable: string): Promise<void> {
  const bytes = Buffer.from(await Bun.file(executable).arrayBuffer());
  for (const name of ["BUN_BE_BUN", "BUN_OPTIONS", "BUN_INSPECT"]) {
    let found = 0;
    for (let at = bytes.indexOf(name); at >= 0; at = bytes.indexOf(name, at + 1), found++)
      bytes.write("=", at);
    if (found === 0)
      throw new Error(`${name} not found in the runtime: look for its new name and adapt build.ts`);
  }
  await Bun.write(executable, bytes);
}

if (import.meta.main) {
  await buildShim();
  if (process.argv[2] !== "shim") await buildExecutable();
}
