/** Ways to show a virtual disk to the kernel as a block device. */
import type { DeviceStats } from "./counters.ts";
import type { DiskSource } from "./io_worker.ts";

export interface Transport<Description> {
  /**
   * Makes a block device of a disk.
   * @param name what the kernel's own listings call the disk; no slash.
   * @throws OverlaybdError E_UNSUPPORTED when this machine lacks what the transport needs; E_IO; what opening the disk
   * throws. Nothing is left behind then.
   */
  attach(source: DiskSource<Description>, name: string): Promise<Device>;
}

export interface Device {
  /** Path of the block device. */
  readonly path: string;
  /**
   * Lets go of the device, which then lives as long as its other users, such as a mount. Resolves when the kernel has
   * let go of the disk and everything written is durable.
   * @throws OverlaybdError when serving the disk failed, or its last writes could not be made durable.
   */
  detach(): Promise<void>;
  stats(): DeviceStats;
  /** Why bytes could last not be fetched; the reads that needed them got EIO. */
  lastError(): unknown;
}
