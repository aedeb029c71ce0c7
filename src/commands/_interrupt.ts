/** Ending early at a signal, with everything cleaned up. */
import { constants } from "node:os";

type StopSignal = "SIGINT" | "SIGTERM";

/** A signal asked the command to end. */
export class Interrupted extends Error {
  override readonly name = "Interrupted";
  /** As a shell reports a process that the signal killed. */
  readonly exitCode: number;

  constructor(signal: StopSignal) {
    super(`stopped by ${signal}`);
    this.exitCode = 128 + constants.signals[signal];
  }
}

/** Runs `work` with a signal that SIGINT and SIGTERM abort, the reason being an `Interrupted`. */
export async function interruptible<T>(work: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const stop = new AbortController();
  const interrupt = (signal: StopSignal) => stop.abort(new Interrupted(signal));
  process.on("SIGINT", interrupt).on("SIGTERM", interrupt);
  try {
    return await work(stop.signal);
  } finally {
    process.off("SIGINT", interrupt).off("SIGTERM", interrupt);
  }
}
