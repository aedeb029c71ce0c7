import { OverlaybdError } from "../error.ts";
import type { ByteSource } from "./source.ts";

/** A range of another source, as a source of its own: what a tar wraps. */
export class Section implements ByteSource {
  constructor(
    private readonly whole: ByteSource,
    private readonly start: number,
    readonly size: number,
  ) {}

  get name(): string {
    return this.whole.name;
  }

  async read(offset: number, length: number): Promise<Uint8Array> {
    if (!(offset >= 0 && length >= 0 && offset + length <= this.size)) {
      const range = `${length} bytes at ${offset} end beyond the layer's ${this.size}`;
      throw new OverlaybdError("E_CORRUPT", `${this.name}: ${range}`);
    }
    return this.whole.read(this.start + offset, length);
  }
}
