/**
 * Process entry. Called by an upstream tool's name (a link to this executable) it is that tool; else the first word
 * names a subcommand. In a worker thread it does that thread's work.
 */
import { basename } from "node:path";
import { isMainThread } from "node:worker_threads";

async function main(): Promise<void> {
  const { runCommandLine } = await import("./commands/_cli.ts");
  process.exitCode = await runCommandLine(basename(process.argv0), process.argv.slice(2));
}

async function work(): Promise<void> {
  const { runRole } = await import("./worker.ts");
  await runRole();
}

if (isMainThread) main();
else work();
