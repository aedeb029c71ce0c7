import type { Verity } from "../format/verity/descriptor.ts";

/** Where a cached object comes from. Untrusted: may be slow, fail, or lie. */
export interface RangeOrigin {
  /** What to call it in an error message: digest and registry. */
  readonly name: string;
  /** Size of the object in bytes. */
  readonly size: number;
  /**
   * Exactly `length` bytes at `offset`, freshly fetched; the caller owns them. Retries are the origin's business.
   * @param check throws when the bytes that a host sent are wrong; the origin may ask another host then.
   * @throws OverlaybdError E_REGISTRY, E_AUTH, E_NOT_FOUND, E_TIMEOUT; what `check` throws.
   */
  readRange(
    offset: number,
    length: number,
    check?: (bytes: Uint8Array) => Promise<void>,
  ): Promise<Uint8Array>;
  /**
   * A long range as it arrives: pieces of `piece` bytes, the last one may be shorter. Each is valid until the next one is
   * asked for. Absent: `readRange` has to do.
   * @throws OverlaybdError as `readRange`; the pieces before are right then.
   */
  readPieces?(offset: number, length: number, piece: number): AsyncGenerator<Uint8Array, void>;
  /** The Merkle tree in the object, for the cache to check every byte against; absent: what comes is believed. */
  readonly verity?: Verity;
  /**
   * Whether bytes that were kept are those of the object at `offset`; asked for whole refill units. Absent: there is no
   * telling.
   * @throws OverlaybdError when that cannot be found out.
   */
  verify?(offset: number, bytes: Uint8Array): Promise<boolean>;
}
