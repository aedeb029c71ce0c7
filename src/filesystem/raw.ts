import { closeSync, fstatSync, openSync, readFileSync, readSync, type Stats, writeSync } from "node:fs";
import { OverlaybdError } from "../error.ts";
import { punchHole } from "../native/descriptor.ts";
import { writeFromMemory } from "../native/range.ts";
import { BLOCK_BYTES, type Volume } from "./volume.ts";

/** A plain file or a block device as a volume. */
export class RawVolume implements Volume {
  readonly name: string;
  readonly size: number;
  readonly #fd: number;

  /**
   * Opens it for reading and writing. A size that is no multiple of 4096 is rounded down.
   * @throws OverlaybdError E_IO when it cannot be opened, E_USAGE when it is neither a file nor a block device.
   */
  constructor(path: string) {
    this.name = path;
    try {
      this.#fd = openSync(path, "r+");
    } catch (cause) {
      throw new OverlaybdError("E_IO", `cannot open ${path} for writing: ${(cause as Error).message}`, {
        cause,
      });
    }
    try {
      this.size = BLOCK_BYTES * Math.floor(byteSize(fstatSync(this.#fd), path) / BLOCK_BYTES);
    } catch (error) {
      closeSync(this.#fd);
      throw error;
    }
  }

  read(offset: number, target: Uint8Array): void {
    for (let done = 0; done < target.length; ) {
      const count = this.#io(() => readSync(this.#fd, target, done, target.length - done, offset + done));
      if (count === 0)
        throw new OverlaybdError("E_IO", `${this.name} ends before byte ${offset + target.length}`);
      done += count;
    }
  }

  write(offset: number, bytes: Uint8Array): void {
    for (let done = 0; done < bytes.length; )
      done += this.#io(() => writeSync(this.#fd, bytes, done, bytes.length - done, offset + done));
  }

  writeData(offset: number, address: number, length: number): void {
    this.#io(() => writeFromMemory(this.#fd, address, length, offset));
    const rest = -length & (BLOCK_BYTES - 1);
    if (rest > 0) this.write(offset + length, new Uint8Array(rest));
  }

  /** Frees the storage; the range then reads as zeros. */
  discard(offset: number, length: number): void {
    this.#io(() => punchHole(this.#fd, offset, length));
  }

  flush(): void {}

  close(): void {
    closeSync(this.#fd);
  }

  #io<T>(call: () => T): T {
    try {
      return call();
    } catch (cause) {
      throw new OverlaybdError("E_IO", `${this.name}: ${(cause as Error).message}`, { cause });
    }
  }
}

function byteSize(stat: Stats, path: string): number {
  if (stat.isFile()) return stat.size;
  if (!stat.isBlockDevice())
    throw new OverlaybdError("E_USAGE", `${path} is neither a file nor a block device`);
  // sysfs counts in units of 512 bytes, whatever the device's sectors are. dev_t: glibc's gnu_dev_major and _minor.
  const major = Math.floor(stat.rdev / 256) & 0xfff;
  const minor = (stat.rdev & 0xff) | (Math.floor(stat.rdev / 2 ** 12) & 0xfff00);
  return Number(readFileSync(`/sys/dev/block/${major}:${minor}/size`, "latin1")) * 512;
}
