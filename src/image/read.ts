/** Reading a disk where waiting is allowed: tools and the main thread. */
import { OverlaybdError } from "../error.ts";
import type { Memory } from "../native/memory.ts";
import type { VirtualDisk } from "./disk.ts";
import type { OpenImage } from "./open.ts";

/** How often a read may find that what was fetched for it is gone again. */
const MAX_ROUNDS = 64;

/**
 * Reads `length` bytes at `offset`, multiples of 512, into the start of `memory`, fetching what is missing.
 * @throws OverlaybdError as `VirtualDisk.read`; what fetching throws; E_BUSY when fetched bytes never stay long enough.
 */
export async function readDisk(
  image: Pick<OpenImage, "fetch">,
  disk: VirtualDisk,
  offset: number,
  length: number,
  memory: Memory,
): Promise<void> {
  if (length > memory.bytes.length)
    throw new RangeError(`${length} bytes do not fit in ${memory.bytes.length}`);
  for (let round = 0; round < MAX_ROUNDS; round++) {
    const missing = disk.read(offset, length, memory.address);
    if (missing === null) return;
    await Promise.all(missing.map((range) => image.fetch(range)));
  }
  throw new OverlaybdError(
    "E_BUSY",
    `${length} bytes at ${offset} of the disk were displaced from memory ${MAX_ROUNDS} times before they could be read; the cache's disk is full`,
  );
}
