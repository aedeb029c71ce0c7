/** Starting this program again as a process of its own that serves on after the command that started it is over. */
import { spawn } from "node:child_process";
import { closeSync, openSync, writeSync } from "node:fs";
import { type ErrorCode, OverlaybdError } from "../error.ts";
import { programCommand } from "../program.ts";

/** Tells a started process the descriptor on which its starter waits. */
const READY_FD = "OVERLAYBD_READY_FD";

type Report<T> = { readonly ready: T } | { readonly code: ErrorCode; readonly message: string };

/**
 * Starts this program with `words` in a session of its own, its output appended to file `log`, and waits until it
 * calls `Readiness.ready`; returns what it reports.
 * @throws OverlaybdError that it reports instead, or E_IO when it ends without a word.
 */
export async function startDaemon<T>(words: readonly string[], log: string): Promise<T> {
  const [program, ...rest] = programCommand;
  const output = openSync(log, "a", 0o600);
  const child = spawn(program, [...rest, ...words], {
    detached: true,
    stdio: ["ignore", output, output, "pipe"],
    env: { ...process.env, [READY_FD]: "3" },
  });
  closeSync(output);
  const exited = new Promise<string>((resolve) => {
    child.once("exit", (code, signal) => resolve(signal === null ? `exit code ${code}` : signal));
    child.once("error", (error) => resolve(error.message));
  });
  const pieces: Buffer[] = [];
  for await (const piece of child.stdio[3] as AsyncIterable<Buffer>) pieces.push(piece);
  if (pieces.length === 0) {
    throw new OverlaybdError("E_IO", `the server process ended at its start (${await exited}); see ${log}`);
  }
  child.unref();
  const report = JSON.parse(Buffer.concat(pieces).toString()) as Report<T>;
  if ("ready" in report) return report.ready;
  throw new OverlaybdError(report.code, report.message);
}

/** The started process' side. */
export class Readiness {
  private constructor(private fd: number | null) {}

  /** Where somebody waits for this process to be ready, or null when it was started by hand. */
  static inherited(): Readiness | null {
    const value = process.env[READY_FD];
    if (value === undefined) return null;
    delete process.env[READY_FD];
    return new Readiness(Number(value));
  }

  /** Reports that the service is up. From now on no directory is kept busy by working in it. */
  ready(value: unknown): void {
    process.chdir("/");
    this.report({ ready: value });
  }

  /** Reports that there will be no service; false after `ready`, when nobody listens any more. */
  failed(error: unknown): boolean {
    const code = error instanceof OverlaybdError ? error.code : "E_IO";
    return this.report({ code, message: error instanceof Error ? error.message : String(error) });
  }

  private report(report: Report<unknown>): boolean {
    if (this.fd === null) return false;
    writeSync(this.fd, JSON.stringify(report));
    closeSync(this.fd);
    this.fd = null;
    return true;
  }
}
