/**
 * Stand-in for a cache file that the disk cannot take: an anonymous file in memory that holds refill units of one object
 * at their places. All windows of a cache share one bound; the units that came first are punched out when it is reached.
 */
import { closeSync, writeSync } from "node:fs";
import { OverlaybdError } from "../error.ts";
import { anonymousFile, punchHole } from "../native/descriptor.ts";

/** Enough for more than a hundred requests in flight, so that none finds its units gone before it has read them. */
const DEFAULT_BYTES = 128 << 20;

interface Resident {
  readonly window: Window;
  readonly unit: number;
}

/** The memory that windows share. */
export class WindowMemory {
  /** First come, first to go. */
  readonly #residents = new Set<Resident>();
  #bytes = 0;

  constructor(private readonly capacity = DEFAULT_BYTES) {}

  add(resident: Resident): void {
    this.#residents.add(resident);
    this.#bytes += resident.window.unit;
    for (const oldest of this.#residents) {
      if (this.#bytes <= this.capacity) return;
      this.#remove(oldest);
      oldest.window.displace(oldest.unit);
    }
  }

  /** Forgets all of a window that is closed. */
  release(window: Window): void {
    for (const resident of this.#residents) if (resident.window === window) this.#remove(resident);
  }

  #remove(resident: Resident): void {
    this.#residents.delete(resident);
    this.#bytes -= resident.window.unit;
  }
}

export class Window {
  readonly fd: number;
  readonly #units = new Set<number>();

  /** `withdraw` is called before a unit's bytes go. */
  constructor(
    size: number,
    readonly unit: number,
    private readonly memory: WindowMemory,
    private readonly withdraw: (unit: number) => void,
  ) {
    this.fd = anonymousFile(size);
  }

  /** Stores one unit's bytes. @throws OverlaybdError E_IO when memory is short too. */
  put(unit: number, bytes: Uint8Array): void {
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
    if (this.#units.has(unit)) return;
    this.#units.add(unit);
    this.memory.add({ window: this, unit });
  }

  /** Gives a unit up. */
  displace(unit: number): void {
    this.withdraw(unit);
    this.#units.delete(unit);
    punchHole(this.fd, unit * this.unit, this.unit);
  }

  close(): void {
    this.memory.release(this);
    closeSync(this.fd);
  }
}
