/**
 * Process entry. Called by an upstream tool's name (a link to this executable) it is that tool; else the first word
 * names a subcommand. In a worker thread it does that thread's work.
 */
import { basename } from "node:path";
import { isMainThread } from "node:worker_threads";

async function main(): Promise<void> {
  for (const stream of [process.stdout, process.stderr]) {
    // Nobody reads what is written: no reason to stop, nor anybody to tell.
    stream.on("error", (error: NodeJS.ErrnoException) => {
      if (error.code !== "EPIPE") throw error;
    });
  }
  const { Interrupted, runCommandLine } = await import("./commands/_cli.ts");
  try {
    process.exitCode = await runCommandLine(basename(process.argv0), process.argv.slice(2));
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
