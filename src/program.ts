/** How this program starts itself again: as a thread, or as another process. */
import { fileURLToPath } from "node:url";

/** Inside the compiled executable modules live under this prefix, and the entry module is the executable's. */
const compiled = Bun.main.startsWith("/$bunfs/");

/** Path of the entry module, `main.ts`: what a worker thread runs. */
export const programEntry: string = compiled
  ? Bun.main
  : fileURLToPath(new URL("./main.ts", import.meta.url));

/** Words that start this program as a process, in front of its arguments. */
export const programCommand: readonly string[] = compiled
  ? [process.execPath]
  : [process.execPath, programEntry];
