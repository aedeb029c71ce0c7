/** Where a cached object comes from. Untrusted: may be slow, fail, or lie. */
export interface RangeOrigin {
  /** What to call it in an error message: digest and registry. */
  readonly name: string;
  /** Size of the object in bytes. */
  readonly size: number;
  /**
   * Exactly `length` bytes at `offset`, freshly fetched; the caller owns them. Retries are the origin's business.
   * @throws OverlaybdError E_REGISTRY, E_AUTH, E_NOT_FOUND, E_TIMEOUT.
   */
  readRange(offset: number, length: number): Promise<Uint8Array>;
}
