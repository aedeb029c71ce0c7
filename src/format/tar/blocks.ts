import type { ByteStream, Chunk } from "../../native/bytestream.ts";
import { BLOCK_BYTES, FieldError } from "./header.ts";

const NO_CHUNK: Buffer = Buffer.alloc(0);

/** The current place in a stream of tar blocks. No block straddles two chunks. */
export class Blocks {
  chunk = NO_CHUNK;
  /** Native address of the chunk. */
  address = 0;
  /** Next byte to look at, in the chunk; whoever uses bytes moves it. */
  at = 0;
  /** Whether the stream has come to its end. */
  ended = false;
  /** Of the chunk's first byte, in the stream. */
  #base = 0;

  constructor(readonly stream: ByteStream) {}

  /** Byte offset in the stream. */
  get position(): number {
    return this.#base + this.at;
  }

  /** Bytes left in the chunk. */
  get available(): number {
    return this.chunk.length - this.at;
  }

  /** Makes at least one byte available; false at the end of the stream. */
  wantByte(): boolean {
    return this.at < this.chunk.length || this.advance();
  }

  /** Makes a whole block available; false at the end of the stream. @throws FieldError when the stream ends within it. */
  wantBlock(): boolean {
    if (!this.wantByte()) return false;
    if (this.available < BLOCK_BYTES) throw new FieldError("the archive ends within a block");
    return true;
  }

  /** Goes on to the next chunk that is not empty. */
  advance(): boolean {
    if (this.ended) return false;
    this.#base += this.chunk.length;
    this.at = 0;
    this.chunk = NO_CHUNK;
    let next: Chunk | null;
    do next = this.stream.next();
    while (next !== null && next.bytes.length === 0);
    if (next === null) {
      this.ended = true;
      return false;
    }
    this.chunk = Buffer.from(next.bytes.buffer, next.bytes.byteOffset, next.bytes.length);
    this.address = next.address;
    return true;
  }
}
