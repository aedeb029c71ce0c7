/**
 * The start of the executable: `overlaybd --version` from the page cache, against /bin/true. Medians of 21 runs, the two
 * taking turns. Target: under 30 ms.
 *
 *   bun build.ts && bun test/bench/version.ts
 */
import { EXECUTABLE } from "../fixtures/program.ts";
import { median } from "./median.ts";

const RUNS = 21;
const TARGET_MS = 30;
if (!EXECUTABLE) throw new Error("dist/overlaybd is not there: bun build.ts makes it");

const commands = [["/bin/true"], [...EXECUTABLE, "--version"]];
const times: number[][] = commands.map(() => []);
for (let run = 0; run < RUNS; run++) {
  for (const [i, command] of commands.entries()) {
    const begin = performance.now();
    const { exitCode } = Bun.spawnSync(command, { stdin: "ignore", stdout: "ignore" });
    times[i].push(performance.now() - begin);
    if (exitCode !== 0) throw new Error(`${command.join(" ")} ended with exit code ${exitCode}`);
  }
}
const [nothing, version] = times.map(median);
const [fastest, slowest] = [Math.min(...times[1]), Math.max(...times[1])].map((ms) => ms.toFixed(1));
console.log(
  `overlaybd --version: ${version.toFixed(1)} ms (${fastest} to ${slowest} ms; target ${TARGET_MS} ms), /bin/true: ${nothing.toFixed(1)} ms`,
);
