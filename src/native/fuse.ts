/** Connections of /dev/fuse: requests in, replies out. What they mean is `device/fuse/protocol.ts`'s. */
import { type Pointer, ptr } from "bun:ffi";
import { constants } from "node:os";
import { check, SystemError } from "./errno.ts";
import { bind } from "./library.ts";

const shim = bind({
  shim_fuse_open: { args: [], returns: "i32" },
  shim_fuse_mount: { args: ["i32"], returns: "i32" },
  shim_fuse_receive: { args: ["i32", "ptr", "u32"], returns: "i32" },
  shim_fuse_reply: { args: ["i32", "ptr", "u32"], returns: "i32" },
});

/** Opens a new connection, non-blocking. The caller closes it, which fails every request that is still open. */
export function openFuse(): number {
  return check(shim.shim_fuse_open(), "open", "/dev/fuse");
}

/**
 * Mounts a connection where no path leads to and returns a descriptor of its root directory. The mount is gone once
 * that descriptor and the files opened below it are closed, so nobody, however killed, can leave it behind.
 */
export function mountFuse(fd: number): number {
  return check(shim.shim_fuse_mount(fd), "mount", "a FUSE file system (needs root and Linux 5.2)");
}

/** The longest payload of a read or a write. */
export const MAX_PAYLOAD = 1 << 20;

const PAGE = 4096;
/** Bytes of a write request in front of its data: struct fuse_in_header and struct fuse_write_in (linux/fuse.h). */
const WRITE_HEADERS = 80;
/** Bytes of struct fuse_out_header. */
const REPLY_HEADER = 16;

/** A native buffer in which byte `head` starts a page, so that a payload there is fit for direct I/O. */
class AlignedBuffer {
  readonly view: DataView;
  /** Native address of byte 0. */
  readonly address: number;

  constructor(head: number, length: number) {
    const memory = new Uint8Array(head + length + PAGE);
    const base = ptr(memory);
    const start = (PAGE - ((base + head) % PAGE)) % PAGE;
    this.view = new DataView(memory.buffer, start, head + length);
    this.address = base + start;
  }
}

/** A reply under construction: struct fuse_out_header, then a payload that starts on a page. */
export class ReplyBuffer {
  private readonly buffer = new AlignedBuffer(REPLY_HEADER, MAX_PAYLOAD);
  /** The whole reply, its header at 0. */
  readonly view = this.buffer.view;
  /** Native address of the payload, `MAX_PAYLOAD` bytes long. */
  readonly payload = this.buffer.address + REPLY_HEADER;

  /**
   * Writes the first `length` bytes as the reply they are. A connection that is gone takes no reply: its next
   * `receive` tells.
   * @throws SystemError EINVAL when the header contradicts `length` or the kernel does not expect such a reply.
   */
  send(fd: number, length: number): void {
    const result = shim.shim_fuse_reply(
      fd,
      this.buffer.address as Pointer,
      Math.min(length, this.view.byteLength),
    );
    if (result < 0 && result !== -constants.errno.ENODEV)
      throw new SystemError(-result, "write", "/dev/fuse");
  }
}

/** Takes requests from connections, one at a time. */
export class RequestBuffer {
  private readonly buffer = new AlignedBuffer(WRITE_HEADERS, MAX_PAYLOAD);
  /** The request last received, valid as far as its header's length says; at least a struct fuse_in_header. */
  readonly view = this.buffer.view;
  /** Native address of the data of a write request. */
  readonly writeData = this.buffer.address + WRITE_HEADERS;

  /** Reads the next request, if there is one. */
  receive(fd: number): "request" | "none" | "unmounted" {
    const length = shim.shim_fuse_receive(fd, this.buffer.address as Pointer, this.view.byteLength);
    if (length > 0) return "request";
    if (length === -constants.errno.EAGAIN) return "none";
    // ECONNABORTED: the last user left, or an administrator aborted the connection, in the middle of a request.
    if (length === -constants.errno.ENODEV || length === -constants.errno.ECONNABORTED) return "unmounted";
    throw new SystemError(-length, "read", "/dev/fuse");
  }
}
