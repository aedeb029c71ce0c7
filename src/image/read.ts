/** Reading a disk where waiting is allowed: tools and the main thread. */
import { OverlaybdError } from "../error.ts";
import { addressOf } from "../native/address.ts";
import type { VirtualDisk } from "./disk.ts";
import type { OpenImage } from "./open.ts";

/** How often a read may find that what was fetched for it is gone again. */
const MAX_ROUNDS = 64;

/**
 * Fills `bytes` from `offset`, both multiples of 512, fetching what is missing.
 * @throws OverlaybdError as `VirtualDisk.read`; what fetching throws; E_BUSY when fetched bytes never stay long enough.
 */
export async function readDisk(
  image: Pick<OpenImage, "fetch">,
  disk: VirtualDisk,
  offset: number,
  bytes: Uint8Array,
): Promise<void> {
  for (let round = 0; round < MAX_ROUNDS; ) {
    const missing = disk.read(offset, bytes.length, addressOf(bytes));
    if (missing === null) return;
    await Promise.all(missing.map((range) => image.fetch(range)));
    // What was damaged is mended now, or fetching it has failed.
    if (missing.every(({ damaged }) => damaged === undefined)) round++;
  }
  throw new OverlaybdError(
    "E_BUSY",
    `${bytes.length} bytes at ${offset} of the disk were displaced from memory ${MAX_ROUNDS} times before they could be read; the cache's disk is full`,
  );
}
