/**
 * Runs the C code under AddressSanitizer and UndefinedBehaviorSanitizer: every `*_test.c` in this folder is a program of
 * its own, linked with all of cffi/, that exits with 0 when all is well. One line per program.
 */
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { $ } from "bun";
import { CFLAGS, LIBRARIES } from "../../build.ts";

const root = join(import.meta.dir, "../..");
const SANITIZERS = [
  ..."-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -O1 -g".split(" "),
];
const work = mkdtempSync(join(tmpdir(), "overlaybd-sanitize-"));

async function compile(source: string): Promise<string> {
  const object = join(work, `${basename(source, ".c")}.o`);
  await $`gcc ${CFLAGS} ${SANITIZERS} -I ${join(root, "cffi")} -c ${source} -o ${object}`;
  return object;
}

function sources(folder: string, ending: string): string[] {
  return readdirSync(folder)
    .filter((name) => name.endsWith(ending))
    .map((name) => join(folder, name))
    .sort();
}

async function passes(driver: string, shim: string[]): Promise<boolean> {
  const name = basename(driver, ".c");
  const program = join(work, name);
  await $`gcc ${SANITIZERS} ${await compile(driver)} ${shim} -o ${program} ${LIBRARIES}`;
  const started = performance.now();
  const child = Bun.spawn([program], { stdin: "ignore", stdout: "pipe", stderr: "pipe", timeout: 120_000 });
  const [out, err] = await Promise.all([child.stdout.text(), child.stderr.text(), child.exited]);
  const seconds = ((performance.now() - started) / 1000).toFixed(1);
  const verdict =
    child.exitCode === 0 ? "ok" : `FAILED (${child.signalCode ?? `exit code ${child.exitCode}`})`;
  console.log(
    `${name}: ${verdict}, ${seconds} s${out === "" ? "" : ` (${out.trim().replaceAll("\n", "; ")})`}`,
  );
  if (child.exitCode !== 0) console.error(err);
  return child.exitCode === 0;
}

try {
  await $`${process.execPath} ${join(root, "build.ts")} shim`;
  const shim = await Promise.all(sources(join(root, "cffi"), ".c").map(compile));
  const drivers = sources(import.meta.dir, "_test.c");
  let passed = 0;
  for (const driver of drivers) if (await passes(driver, shim)) passed++;
  console.log(`${passed} of ${drivers.length} native test programs passed`);
  process.exitCode = passed === drivers.length && passed > 0 ? 0 : 1;
} finally {
  rmSync(work, { recursive: true });
}
