/**
 * Random-access bytes as the format readers see them: a local file, a registry blob, or one format's view of another
 * (a ZFile inside a tar inside a blob).
 */
export interface ByteSource {
  /** What to call it in an error message: a path, or a digest and its registry. */
  readonly name: string;
  /** Size in bytes. */
  readonly size: number;
  /**
   * Reads exactly `length` bytes at `offset`.
   * @throws OverlaybdError E_CORRUPT when the range ends beyond `size`; E_IO, E_REGISTRY and so on from below.
   */
  read(offset: number, length: number): Promise<Uint8Array>;
}
