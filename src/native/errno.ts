import { getSystemErrorMap } from "node:util";

/** A system call, or native code in its name, failed. */
export class SystemError extends Error {
  override readonly name = "SystemError";
  /** Symbolic name of `errno`, such as "ENOENT"; "E117" for one without a name. */
  readonly code: string;

  /** @param errno positive; @param subject what the call was about: a path, "fd 7". */
  constructor(
    readonly errno: number,
    readonly syscall: string,
    subject?: string,
  ) {
    const [code, text] = getSystemErrorMap().get(-errno) ?? [`E${errno}`, `error ${errno}`];
    super(`${syscall}${subject === undefined ? "" : ` ${subject}`}: ${text} (${code})`);
    this.code = code;
  }
}

/** Passes on what a native function returned, unless it is a negative errno. @throws SystemError */
export function check(result: number, syscall: string, subject?: string): number {
  if (result < 0) throw new SystemError(-result, syscall, subject);
  return result;
}
