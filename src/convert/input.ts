/** What a layer is built from. */
import { closeSync, openSync } from "node:fs";
import { OverlaybdError } from "../error.ts";

/** A descriptor that delivers a blob from its first to its last byte. */
export interface Input {
  readonly fd: number;
  /** Whether `complete` vouches for size and digest; otherwise the reader has to check them. */
  readonly verified: boolean;
  /** Resolves when all bytes were delivered; rejects with what went wrong. */
  readonly complete: Promise<void>;
  /** Closes the descriptor. A delivery under way ends with EPIPE. */
  close(): void;
}

/** A blob that lies in a file. */
export function fileInput(path: string, verified: boolean): Input {
  let fd: number;
  try {
    fd = openSync(path, "r");
  } catch (cause) {
    const code = (cause as NodeJS.ErrnoException).code === "ENOENT" ? "E_NOT_FOUND" : "E_IO";
    throw new OverlaybdError(code, `cannot open ${path}: ${(cause as Error).message}`, { cause });
  }
  return { fd, verified, complete: Promise.resolve(), close: () => closeSync(fd) };
}
