/** Serves one image at one directory, from the first byte of its layers' indexes to the last unmount. */
import { mkdir } from "node:fs/promises";
import { createServer, type Server, type Socket } from "node:net";
import { join } from "node:path";
import { consola } from "consola";
import { OverlaybdError } from "../../error.ts";
import { createWritableLayer } from "../../format/lsmt/pair.ts";
import type { ImageOptions, ImageStats, OpenImage } from "../../image/open.ts";
import { openSource } from "../../image/source.ts";
import type { DiskTables, MissingRange } from "../../image/tables.ts";
import { readUpper } from "../../image/upper.ts";
import { SystemError } from "../../native/errno.ts";
import { MountFlag, mount, UnmountFlag, unmount } from "../../native/mount.ts";
import type { DeviceStats } from "../counters.ts";
import { FuseTransport } from "../fuse/transport.ts";
import { IoWorker } from "../io_worker.ts";
import type { Device } from "../transport.ts";
import { MountRecord, type MountState } from "./record.ts";

export interface MountRequest {
  /** What to mount: see `openSource`. */
  readonly source: string;
  /** Where; exists. Absolute, without symbolic links. */
  readonly directory: string;
  /** Folder of the writable layer, which is made when it is not there; absent: read-only. */
  readonly upper?: string;
  readonly runDirectory: string;
}

export interface MountStats {
  readonly image: ImageStats;
  readonly device: DeviceStats;
  /** Why bytes could last not be fetched, for which readers got an I/O error. */
  readonly lastError?: string;
}

/** Mount options. A read-only device cannot replay a journal. */
const READ_ONLY_OPTIONS = ["noload"];
/**
 * The kernel is not to read all block bitmaps, nor to write empty inode tables, which nobody asked for and which would have
 * to be fetched. Kernels before 5.9 do neither know nor need the first option.
 */
const WRITABLE_OPTIONS = ["noinit_itable,no_prefetch_block_bitmaps", "noinit_itable"];

/** Names of a writable layer's files in its folder. */
const UPPER_FILES = { data: "writable_data", index: "writable_index" } as const;

/**
 * Mounts, calls `mounted`, and serves until the file system is unmounted by whatever means. Resolves when everything
 * written is durable and nothing is left of the mount.
 * @throws OverlaybdError; nothing is left of the mount then either.
 */
export async function serveMount(
  request: MountRequest,
  options: ImageOptions,
  mounted: (state: MountState) => void,
): Promise<MountStats> {
  await using cleanup = new AsyncDisposableStack();
  const record = await MountRecord.claim(request.runDirectory, request.directory);
  cleanup.defer(() => record.remove());
  const opened = await openSource(request.source, options);
  cleanup.defer(() => opened.close());
  opened.prefetch();
  const image = request.upper === undefined ? opened : await withUpper(opened, request.upper);
  const worker = new IoWorker<DiskTables>();
  cleanup.defer(() => worker.stop());
  const device = await new FuseTransport([worker]).attach(diskSource(image), "overlaybd");
  const state = {
    directory: request.directory,
    source: request.source,
    pid: process.pid,
    device: device.path,
  };
  record.write(state);
  const listener = await EndListener.listen(record.socket);
  cleanup.defer(() => listener.close());
  try {
    await mountExt4(state, image.tables.upper !== undefined);
  } catch (error) {
    await device.detach();
    throw error;
  }
  image.download();
  const stats = () => ({
    image: image.stats(),
    device: device.stats(),
    lastError: explainFailure(device.lastError()),
  });
  await serveUntilUnmounted(device, state, () => mounted(state));
  listener.tell(stats());
  return stats();
}

function explainFailure(error: unknown): string | undefined {
  return error === undefined ? undefined : error instanceof Error ? error.message : String(error);
}

/** From here on the mount alone keeps the device: when it goes, everything goes. */
async function serveUntilUnmounted(device: Device, state: MountState, mounted: () => void): Promise<void> {
  const stop = () => void unmountOrDetach(state.directory);
  process.on("SIGTERM", stop).on("SIGINT", stop);
  const gone = device.detach();
  gone.catch(() => {}); // Looked at below, after the caller has been told.
  mounted();
  try {
    await gone;
  } finally {
    process.off("SIGTERM", stop).off("SIGINT", stop);
  }
}

async function unmountOrDetach(directory: string): Promise<void> {
  try {
    await unmount(directory, UnmountFlag.NOFOLLOW);
  } catch (error) {
    if (!(error instanceof SystemError) || error.code !== "EBUSY") {
      consola.warn(`${directory} cannot be unmounted: ${error}`);
      return;
    }
    consola.warn(`${directory} is in use: it is detached now and served until its last user is gone`);
    await unmount(directory, UnmountFlag.NOFOLLOW | UnmountFlag.DETACH);
  }
}

async function mountExt4({ device, directory }: MountState, writable: boolean): Promise<void> {
  const flags = MountFlag.NOATIME | (writable ? 0 : MountFlag.READ_ONLY);
  const choices = writable ? WRITABLE_OPTIONS : READ_ONLY_OPTIONS;
  for (const [i, options] of choices.entries()) {
    try {
      return await mount(device, directory, "ext4", flags, options);
    } catch (cause) {
      const refused = cause instanceof SystemError && cause.code === "EINVAL";
      if (refused && i < choices.length - 1) continue;
      const reason = refused ? "it holds no ext4 file system" : cause;
      throw new OverlaybdError("E_IO", `the image cannot be mounted at ${directory}: ${reason}`, { cause });
    }
  }
}

/** The image with the writable layer of a folder on top. */
async function withUpper(image: OpenImage, folder: string): Promise<OpenImage> {
  if (image.tables.upper) {
    throw new OverlaybdError(
      "E_USAGE",
      `the image config names a writable layer itself: leave --upper ${folder} out`,
    );
  }
  const upper = { data: join(folder, UPPER_FILES.data), index: join(folder, UPPER_FILES.index) };
  try {
    await mkdir(folder, { recursive: true, mode: 0o700 });
    const parentUuid = image.layers[0]?.content.uuid;
    createWritableLayer(upper.data, upper.index, { size: image.tables.size, parentUuid }).close();
  } catch (error) {
    // What was written before is gone on with.
    if (!(error instanceof OverlaybdError) || error.code !== "E_EXISTS") throw error;
  }
  const { size } = await readUpper(upper);
  return { ...image, tables: { ...image.tables, upper, size: size || image.tables.size } };
}

/** Fetching for the worker; failures go to the log, each once until fetching works again. */
function diskSource(image: OpenImage) {
  let logged = "";
  const fetch = async (range: MissingRange): Promise<void> => {
    try {
      await image.fetch(range);
      logged = "";
    } catch (error) {
      const message = error instanceof Error ? error.message : String(error);
      if (message !== logged) consola.error(`a read failed: ${message}`);
      logged = message;
      throw error;
    }
  };
  return { disk: image.tables, writable: image.tables.upper !== undefined, fetch };
}

/** A socket on which others wait for the end: they are told how it went, and then the process ends. */
class EndListener {
  private readonly waiting = new Set<Socket>();

  private constructor(private readonly server: Server) {
    server.on("connection", (socket) => {
      this.waiting.add(socket.unref());
      socket.on("close", () => this.waiting.delete(socket));
      socket.on("error", () => this.waiting.delete(socket));
    });
  }

  static async listen(path: string): Promise<EndListener> {
    const server = createServer().unref();
    const listener = new EndListener(server);
    await new Promise<void>((resolve, reject) => server.once("error", reject).listen(path, resolve));
    return listener;
  }

  /** Leaves the connections open: it is the process' end that closes them. */
  tell(stats: MountStats): void {
    for (const socket of this.waiting) socket.write(JSON.stringify(stats));
  }

  close(): void {
    this.server.close();
  }
}
