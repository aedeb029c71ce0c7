/**
 * One FUSE connection: a file system of one directory with one file, which is the virtual disk. Runs in an I/O worker;
 * a read whose bytes are not here is parked, and the connection goes on with the next request.
 */
import { constants } from "node:os";
import type { MissingRange } from "../../image/tables.ts";
import { MAX_PAYLOAD, type RequestBuffer } from "../../native/fuse.ts";
import { type Counter, type CounterMemory, counterIndex } from "../counters.ts";
import { type Disk, SECTOR } from "../disk.ts";
import { ParkedReads } from "../parked.ts";
import * as protocol from "./protocol.ts";
import { InitFlag, Opcode, OpenFlag, type Unique } from "./protocol.ts";
import { Cursor, type ReplyBuffers } from "./readahead.ts";

const { EINTR, EINVAL, EIO, ENOENT, ENOSPC, ENOSYS, EOPNOTSUPP, EPROTO, EROFS } = constants.errno;

const ROOT = 1;
const FILE = 2;
/** File types in st_mode (S_IFDIR, S_IFREG) and in directory entries (DT_DIR, DT_REG). */
const DIRECTORY = { mode: 0o040000, type: 4 } as const;
const REGULAR = { mode: 0o100000, type: 8 } as const;

/** Access mode bits of open(2). */
const ACCESS_MODE = 3;
/** Modes of fallocate(2) after which the range reads as zeros. */
const KEEP_SIZE = 1;
const PUNCH_HOLE = 2;
const ZERO_RANGE = 16;

/**
 * More than the 128 requests that a loop device sends at most: the kernel holds requests back beyond this number, also
 * those that could be served while others wait for the network.
 */
const MAX_BACKGROUND = 512;

/** Requests taken in one turn, so that one busy device does not starve the worker's others. */
const TURN = 32;

/** Bytes of payload to reply with, a negative errno, or null: no reply, or not yet. */
type Outcome = number | null;

interface Read {
  readonly unique: Unique;
  readonly offset: number;
  readonly length: number;
}

export interface SessionOptions {
  /** Descriptor of the connection; the session closes it. */
  readonly fd: number;
  /** The file's name. */
  readonly name: string;
  readonly disk: Disk;
  readonly counters: CounterMemory;
  /** Asks for bytes from the network; `settled` answers. */
  readonly ask: (fetch: number, range: MissingRange) => void;
}

/** Buffers that all sessions of a worker share: a request is finished, or parked without them, before the next. */
export interface Buffers {
  readonly request: RequestBuffer;
  readonly replies: ReplyBuffers;
}

export class FuseSession {
  private readonly disk: Disk;
  private readonly parked: ParkedReads<Read>;
  private readonly cursor = new Cursor();

  constructor(
    private readonly options: SessionOptions,
    private readonly buffers: Buffers,
  ) {
    this.disk = options.disk;
    this.parked = new ParkedReads(options.ask);
  }

  /** Serves the requests that wait, up to a bound; false once the file system is unmounted. */
  serve(): boolean {
    for (let i = 0; i < TURN; i++) {
      const state = this.buffers.request.receive(this.options.fd);
      if (state === "unmounted") return false;
      if (state === "none") {
        this.readAhead();
        break;
      }
      this.handle(this.buffers.request.view);
    }
    return true;
  }

  /** A fetch has ended: reads that waited for it go on, or fail with EIO. */
  settled(fetch: number, failed: boolean): void {
    for (const { read, failed: lost } of this.parked.settle(fetch, failed)) {
      this.finish(read.unique, () => (lost ? -EIO : this.read(read)));
    }
  }

  private handle(view: DataView): void {
    const opcode = protocol.request.opcode(view);
    const unique = protocol.request.unique(view);
    const complete = protocol.request.length(view) >= protocol.IN_HEADER + protocol.leastBody(opcode);
    this.finish(unique, () => (complete ? this.dispatch(opcode, unique, view) : -EPROTO));
  }

  /** Answers a request with its outcome; whatever goes wrong with one request is that request's answer. */
  private finish(unique: Unique, serve: () => Outcome): void {
    let outcome: Outcome;
    try {
      outcome = serve();
    } catch (error) {
      outcome = -errnoOf(error);
    }
    if (outcome === null) return;
    if (outcome === -EIO) this.count("errors", 1);
    const reply = this.buffers.replies.current;
    const errno = Math.max(0, -outcome);
    reply.send(this.options.fd, protocol.encodeHeader(reply.view, unique, errno, Math.max(0, outcome)));
  }

  private dispatch(opcode: number, unique: Unique, view: DataView): Outcome {
    const reply = this.buffers.replies.current.view;
    switch (opcode) {
      case Opcode.READ:
        return this.startRead(unique, view);
      case Opcode.WRITE:
        return this.write(view);
      case Opcode.FSYNC:
        this.disk.flush();
        return 0;
      case Opcode.FALLOCATE:
        return this.allocate(view);
      case Opcode.INIT:
        return this.init(view);
      case Opcode.LOOKUP:
        if (protocol.request.node(view) !== ROOT || protocol.decodeName(view) !== this.options.name)
          return -ENOENT;
        return protocol.encodeEntry(reply, this.attributes(FILE));
      case Opcode.GETATTR:
        return protocol.encodeAttributes(reply, this.attributes(protocol.request.node(view)));
      case Opcode.OPEN:
        return this.open(view);
      case Opcode.OPENDIR:
        return protocol.encodeOpen(reply, 0);
      case Opcode.READDIR:
        return this.list(view);
      case Opcode.STATFS:
        return protocol.encodeStatfs(reply, this.disk.size);
      case Opcode.ACCESS:
      case Opcode.FLUSH:
      case Opcode.RELEASE:
      case Opcode.RELEASEDIR:
      case Opcode.FSYNCDIR:
      case Opcode.DESTROY:
        return 0;
      case Opcode.FORGET:
      case Opcode.BATCH_FORGET:
        return null; // Never answered; inodes are not counted, there are two.
      case Opcode.INTERRUPT:
        this.interrupt(protocol.decodeInterrupt(view));
        return null;
      default:
        return -ENOSYS;
    }
  }

  private init(view: DataView): Outcome {
    const kernel = protocol.decodeInit(view);
    if (kernel.major < protocol.VERSION.major) return -EPROTO;
    // A newer major sees our version in the answer and asks again.
    const wanted = InitFlag.ASYNC_READ | InitFlag.BIG_WRITES | InitFlag.ASYNC_DIO | InitFlag.MAX_PAGES;
    return protocol.encodeInit(this.buffers.replies.current.view, {
      flags: kernel.flags & wanted,
      maxReadahead: kernel.maxReadahead,
      maxBackground: MAX_BACKGROUND,
      maxWrite: MAX_PAYLOAD,
    });
  }

  private attributes(node: number): protocol.Attributes {
    if (node === ROOT) return { node, size: 0, mode: DIRECTORY.mode | 0o500, links: 2 };
    return { node: FILE, size: this.disk.size, mode: REGULAR.mode | 0o600, links: 1 };
  }

  private open(view: DataView): Outcome {
    const writes = (protocol.decodeOpenFlags(view) & ACCESS_MODE) !== 0;
    if (writes && !this.disk.writable) return -EROFS;
    // The loop device's user caches; a second copy here would only cost memory.
    return protocol.encodeOpen(
      this.buffers.replies.current.view,
      OpenFlag.DIRECT_IO | OpenFlag.PARALLEL_DIRECT_WRITES,
    );
  }

  private list(view: DataView): Outcome {
    const { offset, length } = protocol.decodeRange(view);
    const entries = [
      { node: ROOT, name: ".", type: DIRECTORY.type },
      { node: ROOT, name: "..", type: DIRECTORY.type },
      { node: FILE, name: this.options.name, type: REGULAR.type },
    ];
    const capacity = Math.min(length, MAX_PAYLOAD);
    return protocol.encodeDirectory(this.buffers.replies.current.view, entries, offset, capacity);
  }

  private startRead(unique: Unique, view: DataView): Outcome {
    const { offset, length } = protocol.decodeRange(view);
    if (offset >= this.disk.size) return 0;
    const inside = Math.min(length, this.disk.size - offset);
    if (!isSectors(offset, inside) || inside > MAX_PAYLOAD) return -EINVAL;
    this.count("reads", 1);
    this.cursor.moved(offset, inside);
    return this.read({ unique, offset, length: inside });
  }

  private read(read: Read): Outcome {
    const { replies } = this.buffers;
    const prepared = replies.take(this.cursor, read.offset, read.length);
    const missing = prepared ? null : this.disk.read(read.offset, read.length, replies.current.payload);
    if (missing) {
      this.count("misses", 1);
      this.parked.park(read, missing);
      return null;
    }
    this.count("readBytes", read.length);
    return read.length;
  }

  /** With nothing else to do: the read that a sequential reader will send next. */
  private readAhead(): void {
    const { replies } = this.buffers;
    const next = this.cursor.expected(this.disk.size);
    if (!next) return;
    const { offset, length } = next;
    replies.prepare(this.cursor, offset, length, (address) => this.isReadable(offset, length, address));
  }

  /** Whether the bytes are here and whole; if not, the read that really wants them will tell. */
  private isReadable(offset: number, length: number, address: number): boolean {
    try {
      return this.disk.read(offset, length, address) === null;
    } catch {
      return false;
    }
  }

  private write(view: DataView): Outcome {
    const { offset, length } = protocol.decodeRange(view);
    if (!this.disk.writable) return -EROFS;
    const sent = protocol.request.length(view) - protocol.IN_HEADER - protocol.leastBody(Opcode.WRITE);
    if (!isSectors(offset, length) || length > sent) return -EINVAL;
    if (offset + length > this.disk.size) return -ENOSPC;
    this.buffers.replies.drop(this.cursor);
    this.disk.write(offset, length, this.buffers.request.writeData);
    this.count("writes", 1);
    this.count("writtenBytes", length);
    return protocol.encodeWritten(this.buffers.replies.current.view, length);
  }

  private allocate(view: DataView): Outcome {
    const { offset, length, mode } = protocol.decodeFallocate(view);
    const operation = mode & ~KEEP_SIZE;
    if (operation !== PUNCH_HOLE && operation !== ZERO_RANGE) return -EOPNOTSUPP;
    if (!this.disk.writable) return -EROFS;
    if (!isSectors(offset, length) || offset + length > this.disk.size) return -EINVAL;
    this.buffers.replies.drop(this.cursor);
    this.disk.discard(offset, length);
    return 0;
  }

  private interrupt(target: Unique): void {
    const read = this.parked.cancel((r) => r.unique.low === target.low && r.unique.high === target.high);
    // Anything else is answered already.
    if (read) this.finish(read.unique, () => -EINTR);
  }

  private count(counter: Counter, by: number): void {
    this.options.counters[counterIndex[counter]] += by;
  }
}

function isSectors(offset: number, length: number): boolean {
  return offset % SECTOR === 0 && length % SECTOR === 0 && length > 0;
}

/** The system's reason where it means something to the disk's user, else EIO. */
function errnoOf(error: unknown): number {
  for (let at = error; at instanceof Error; at = at.cause) {
    if ("errno" in at && (at.errno === ENOSPC || at.errno === EROFS)) return at.errno;
  }
  return EIO;
}
