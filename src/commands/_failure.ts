/** How failures end: which ones are told in a line, and which are bugs of this program. */
import { OverlaybdError } from "../error.ts";

/**
 * The one line that tells an error to people; undefined for a bug of ours, which should end with its stack. Refusals of the
 * operating system (a path that is not there, a full disk) are recognised by naming their system call, whoever threw them.
 */
export function explain(error: unknown): string | undefined {
  if (!(error instanceof OverlaybdError) && !(error instanceof Error && "syscall" in error)) return undefined;
  return error.message.replace(/\s*\n\s*/g, " ").trim();
}
