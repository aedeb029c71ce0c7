/**
 * The one error type of this program.
 *
 * `code` is stable and meant for programs ("E_LAYER_CORRUPT"); `message` is meant for people and
 * says what happened, to what (path, digest, offset) and, where it is not obvious, what to do.
 */
export class OverlaybdError extends Error {
  override readonly name = "OverlaybdError";

  constructor(
    readonly code: ErrorCode,
    message: string,
    options?: { cause?: unknown },
  ) {
    super(message, options);
  }
}

/** Stable error codes. Add one when a program would want to tell the case apart, not for every message. */
export type ErrorCode =
  | "E_USAGE" // the command line or a call's arguments are wrong
  | "E_CONFIG" // a configuration file is missing, malformed or holds a wrong value
  | "E_CORRUPT" // bytes on disk or from a peer contradict their format, checksum or digest
  | "E_UNSUPPORTED" // valid, but of a kind this program does not handle
  | "E_LIMIT" // beyond a documented bound
  | "E_IO" // the operating system refused; `cause` is the SystemError
  | "E_NOT_FOUND" // a file, blob, tag or device does not exist
  | "E_EXISTS" // would overwrite something
  | "E_AUTH" // credentials missing or refused
  | "E_REGISTRY" // a registry answered something unexpected
  | "E_TIMEOUT" // a deadline passed
  | "E_BUSY"; // in use by somebody else
