/**
 * Process entry. Called by an upstream tool's name (a link to this executable) it is that tool; else the first word
 * names a subcommand. In a worker thread it does that thread's work.
 */
import { basename } from "node:path";
import { isMainThread } from "node:worker_threads";

/** Exit code of a command that did its work, but could not say what came out of it. */
const RESULT_LOST = 1;

async function main(): Promise<void> {
  // What cannot be told on stderr can be told nowhere.
  process.stderr.on("error", () => {});
  process.stdout.on("error", (error: NodeJS.ErrnoException) => {
    // A reader that has gone wants no more.
    if (error.code === "EPIPE") return;
    process.stderr.write(`overlaybd: writing to stdout failed: ${error.message}\n`);
    process.exitCode = RESULT_LOST;
  });
  const { Interrupted, runCommandLine } = await import("./commands/_cli.ts");
  try {
    const exitCode = await runCommandLine(basename(process.argv0), process.argv.slice(2));
    process.exitCode ||= exitCode;
  } catch (error) {
    if (!(error instanceof Interrupted)) throw error;
    // Threads and transfers that the work has left are of no use any more.
    process.exit(error.exitCode);
  }
}

async function work(): Promise<void> {
  const { runRole } = await import("./worker.ts");
  await runRole();
}

if (isMainThread) main();
else work();
