/** What an I/O worker sleeps on: the queues of its devices, and a descriptor by which other threads wake it. */
import { ptr } from "bun:ffi";
import { closeSync } from "node:fs";
import { check } from "./errno.ts";
import { bind } from "./library.ts";

const shim = bind({
  shim_wake_create: { args: [], returns: "i32" },
  shim_wake_signal: { args: ["i32"], returns: "i32" },
  shim_queue_create: { args: [], returns: "i32" },
  shim_queue_add: { args: ["i32", "i32", "u32"], returns: "i32" },
  shim_queue_remove: { args: ["i32", "i32"], returns: "i32" },
  shim_queue_wait: { args: ["i32", "i32", "ptr", "u32"], returns: "i32" },
});

/** Tag that `QueueSet.wait` reports for a wake-up. */
export const WAKE_TAG = 0xffffffff;

/** Creates a wake descriptor. The caller closes it. */
export function createWake(): number {
  return check(shim.shim_wake_create(), "eventfd");
}

/** Wakes whoever waits, or will wait next, on a queue set with this wake descriptor; from any thread. */
export function signalWake(wake: number): void {
  check(shim.shim_wake_signal(wake), "write");
}

/** Descriptors that one thread waits on together. */
export class QueueSet {
  private readonly set = check(shim.shim_queue_create(), "epoll_create1");
  private readonly tags = new Uint32Array(64);

  constructor(private readonly wake: number) {
    this.add(wake, WAKE_TAG);
  }

  /** Adds a descriptor to wait for; `tag` is what `wait` reports when it is readable. */
  add(fd: number, tag: number): void {
    check(shim.shim_queue_add(this.set, fd, tag), "epoll_ctl");
  }

  remove(fd: number): void {
    check(shim.shim_queue_remove(this.set, fd), "epoll_ctl");
  }

  /** Blocks the thread until something is readable. The result, the tags of those, is valid until the next call. */
  wait(): Uint32Array {
    const count = check(
      shim.shim_queue_wait(this.set, this.wake, ptr(this.tags), this.tags.length),
      "epoll_wait",
    );
    return this.tags.subarray(0, count);
  }

  close(): void {
    closeSync(this.set);
  }
}
