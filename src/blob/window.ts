/**
 * Stand-in for a cache file that the disk cannot take: an anonymous file in memory that holds the most recently
 * fetched refill units at their places, and punches the oldest out when it is full.
 */
import { closeSync, writeSync } from "node:fs";
import { OverlaybdError } from "../error.ts";
import { anonymousFile, punchHole } from "../native/descriptor.ts";

/** Enough for dozens of requests in flight, so that none finds its units gone before it has read them. */
export const WINDOW_BYTES = 32 << 20;

export class Window {
  readonly fd: number;
  /** Units in the file, oldest first. */
  readonly #resident: number[] = [];

  /** `withdraw` is called before a unit's bytes go. */
  constructor(
    size: number,
    private readonly unit: number,
    private readonly withdraw: (unit: number) => void,
  ) {
    this.fd = anonymousFile(size);
  }

  /** Stores one unit's bytes. @throws OverlaybdError E_IO when memory is short too. */
  put(unit: number, bytes: Uint8Array): void {
    if (this.#resident.includes(unit)) return;
    if ((this.#resident.length + 1) * this.unit > WINDOW_BYTES) {
      const oldest = this.#resident.shift() as number;
      this.withdraw(oldest);
      punchHole(this.fd, oldest * this.unit, this.unit);
    }
    try {
      for (let done = 0; done < bytes.length; ) {
        done += writeSync(this.fd, bytes, done, bytes.length - done, unit * this.unit + done);
      }
    } catch (cause) {
      const why = (cause as Error).message;
      throw new OverlaybdError(
        "E_IO",
        `fetched bytes fit neither on the cache's disk nor in memory: ${why}`,
        { cause },
      );
    }
    this.#resident.push(unit);
  }

  close(): void {
    closeSync(this.fd);
  }
}
