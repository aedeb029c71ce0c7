/**
 * Sequential reads one step ahead: while the kernel carries one reply to its reader, the next is decompressed into a
 * second reply buffer, and then only needs its header.
 */
import { ReplyBuffer } from "../../native/fuse.ts";

/** Longer reads are not done ahead: a request that comes meanwhile would have to wait too long for its turn. */
const MAX_LENGTH = 256 << 10;

/** Where a disk's reader is. */
export class Cursor {
  private next = -1;
  private length = 0;
  private sequential = false;

  moved(offset: number, length: number): void {
    this.sequential = offset === this.next;
    this.next = offset + length;
    this.length = length;
  }

  /** The read to expect, of a disk of `size` bytes; null when there is no telling. */
  expected(size: number): { offset: number; length: number } | null {
    const length = Math.min(this.length, size - this.next);
    if (!this.sequential || length <= 0 || length > MAX_LENGTH) return null;
    return { offset: this.next, length };
  }
}

/** The reply that is being made, and one that may be wanted next. Shared by all sessions of a worker. */
export class ReplyBuffers {
  current = new ReplyBuffer();
  private ahead = new ReplyBuffer();
  private owner: Cursor | null = null;
  private offset = 0;
  private length = 0;

  /** Makes the reply to an expected read; `read` fills native memory and returns whether it could. */
  prepare(owner: Cursor, offset: number, length: number, read: (address: number) => boolean): void {
    if (this.owner === owner && this.offset === offset && this.length === length) return;
    this.owner = null;
    if (!read(this.ahead.payload)) return;
    this.owner = owner;
    this.offset = offset;
    this.length = length;
  }

  /** Makes the prepared reply the current one, if it is to this read. */
  take(owner: Cursor, offset: number, length: number): boolean {
    if (this.owner !== owner || this.offset !== offset || this.length !== length) return false;
    [this.current, this.ahead] = [this.ahead, this.current];
    this.owner = null;
    return true;
  }

  /** Forgets what was prepared: the disk has changed. */
  drop(owner: Cursor): void {
    if (this.owner === owner) this.owner = null;
  }
}
