/**
 * An OCI image layout (OCI image-spec, image-layout.md): `oci-layout`, `index.json` and `blobs/ALGORITHM/HEX` in one
 * directory. Blobs and the index appear by rename after fsync, so that a crash at any moment leaves either nothing or
 * the whole; leftovers of a crash lie in `ingest/` until somebody else writes to the layout.
 */
import { type FileHandle, link, mkdir, open, readdir, readFile, rename, rm, stat } from "node:fs/promises";
import { dirname, join, resolve } from "node:path";
import { OverlaybdError } from "../error.ts";
import { type ClaimedFile, createClaimed, lockFile, sweepClaimed } from "../native/lock.ts";
import {
  type Descriptor,
  encodeIndex,
  type Index,
  MANIFEST_LIMIT,
  MediaType,
  parseIndex,
} from "./descriptor.ts";
import { splitDigest } from "./digest.ts";
import { encodeJson, parseJsonObject } from "./json.ts";
import type { BlobUpload } from "./repository.ts";

const VERSION = "1.0.0";
/** How long another process may take to update the index. */
const LOCK_TIMEOUT_MS = 30_000;
/** Room for a hundred thousand entries, far beyond what is of use. */
const INDEX_LIMIT = 64 * 1024 * 1024;

export class ImageLayout {
  /** Tail of the queue of index updates of this process, by directory. */
  static readonly #updates = new Map<string, Promise<unknown>>();

  /** The first write removes what killed processes have left. */
  #swept = false;

  private constructor(readonly directory: string) {}

  /**
   * @param create makes an empty layout where there is none (the directory may exist, but has to be empty)
   * @throws OverlaybdError E_NOT_FOUND, E_CORRUPT, E_EXISTS (something else is there), E_IO
   */
  static async open(path: string, { create = false } = {}): Promise<ImageLayout> {
    const layout = new ImageLayout(resolve(path));
    const marker = await io(layout.#path("oci-layout"), (path) => readFile(path)).catch(ifMissing);
    if (marker !== undefined) layout.#checkVersion(marker);
    else if (create) await layout.#create();
    else
      throw new OverlaybdError(
        "E_NOT_FOUND",
        `${path} is not an OCI image layout: it has no file oci-layout`,
      );
    return layout;
  }

  #checkVersion(marker: Uint8Array): void {
    const { imageLayoutVersion: version } = parseJsonObject(marker, this.#path("oci-layout"));
    if (version !== VERSION) {
      throw new OverlaybdError("E_UNSUPPORTED", `${this.directory}: image layout version is not ${VERSION}`);
    }
  }

  async #create(): Promise<void> {
    await io(this.directory, (path) => mkdir(path, { recursive: true }));
    const present = (await io(this.directory, (path) => readdir(path))).filter(
      (name) => !["blobs", "ingest", "index.json", "oci-layout"].includes(name),
    );
    if (present.length > 0) {
      throw new OverlaybdError("E_EXISTS", `${this.directory} is neither empty nor an OCI image layout`);
    }
    await io(this.#path("blobs/sha256"), (path) => mkdir(path, { recursive: true }));
    // Others may create it at the same time. The marker comes last, because it is what makes the directory a layout.
    const empty = encodeIndex({ mediaType: MediaType.ociIndex, manifests: [] });
    await this.#publish("index.json", empty, link).catch(ifPresent);
    await this.#publish("oci-layout", encodeJson({ imageLayoutVersion: VERSION }), link).catch(ifPresent);
  }

  #path(...names: string[]): string {
    return join(this.directory, ...names);
  }

  /** Path of a blob, whether it exists or not. @throws OverlaybdError E_CORRUPT when `digest` is malformed */
  blobPath(digest: string): string {
    const { algorithm, hex } = splitDigest(digest);
    return this.#path("blobs", algorithm, hex);
  }

  /** Size of a blob in bytes; undefined: it is not there. */
  async blobSize(digest: string): Promise<number | undefined> {
    const found = await io(this.blobPath(digest), (path) => stat(path)).catch(ifMissing);
    return found?.isFile() ? found.size : undefined;
  }

  /** Starts to write a blob whose digest need not be known yet. */
  async createBlob(): Promise<BlobWriter> {
    const { path, file } = await this.#createPartial();
    return new BlobWriter(this, path, file);
  }

  /** A file in `ingest/`, to be renamed when it is complete. */
  async #createPartial(): Promise<ClaimedFile> {
    const directory = this.#path("ingest");
    await io(directory, (path) => mkdir(path, { recursive: true }));
    if (!this.#swept) {
      this.#swept = true;
      await io(directory, () => sweepClaimed(directory, "", (path) => rm(path, { force: true })));
    }
    return io(directory, () => createClaimed(directory));
  }

  /** The entries of `index.json`. */
  async index(): Promise<readonly Descriptor[]> {
    return (await this.#readIndex()).manifests;
  }

  async #readIndex(): Promise<Index> {
    const path = this.#path("index.json");
    const size = (await io(path, (path) => stat(path)).catch(ifMissing))?.size ?? 0;
    if (size > INDEX_LIMIT)
      throw new OverlaybdError("E_LIMIT", `${path}: ${size} bytes are more than ${INDEX_LIMIT}`);
    const bytes = await io(path, (path) => readFile(path)).catch(ifMissing);
    return bytes === undefined ? { mediaType: MediaType.ociIndex, manifests: [] } : parseIndex(bytes, path);
  }

  /** Replaces the entries of `index.json` by what `change` makes of them. Updates never overlap. */
  updateIndex(change: (manifests: readonly Descriptor[]) => Descriptor[]): Promise<void> {
    const update = async () => {
      const lock = await this.#lock();
      try {
        const index = await this.#readIndex();
        await this.#publish(
          "index.json",
          encodeIndex({ ...index, manifests: change(index.manifests) }),
          rename,
        );
      } finally {
        await lock.close();
      }
    };
    const done = (ImageLayout.#updates.get(this.directory) ?? Promise.resolve()).then(update, update);
    ImageLayout.#updates.set(this.directory, done);
    return done;
  }

  /** Keeps other processes from updating the index: the marker is never replaced. */
  async #lock(): Promise<FileHandle> {
    const path = this.#path("oci-layout");
    const lock = await io(path, () => lockFile(path, LOCK_TIMEOUT_MS));
    if (lock) return lock;
    throw new OverlaybdError("E_BUSY", `another process has held ${path} for ${LOCK_TIMEOUT_MS / 1000} s`);
  }

  /** @param place gives the complete file its name: `rename` replaces what has it, `link` fails */
  async #publish(name: string, bytes: Uint8Array, place: typeof rename): Promise<void> {
    const { path, file } = await this.#createPartial();
    try {
      await io(this.#path(name), async (target) => {
        await file.writeFile(bytes);
        await file.sync();
        await place(path, target);
      });
    } finally {
      await rm(path, { force: true });
      await file.close();
    }
    await syncDirectory(this.directory);
  }

  /** The bytes of a manifest, bounded; undefined: it is not there. Not verified. */
  async readManifest(digest: string): Promise<Uint8Array | undefined> {
    const size = await this.blobSize(digest);
    if (size === undefined) return undefined;
    if (size > MANIFEST_LIMIT) {
      throw new OverlaybdError(
        "E_LIMIT",
        `manifest ${digest} of ${this.directory}: ${size} bytes are more than ${MANIFEST_LIMIT}`,
      );
    }
    return io(this.blobPath(digest), (path) => readFile(path));
  }
}

/** Writes one blob into a layout, hashing on the way. */
export class BlobWriter implements BlobUpload {
  /** Bytes written so far. */
  offset = 0;
  readonly #hasher = new Bun.CryptoHasher("sha256");

  constructor(
    readonly layout: ImageLayout,
    readonly path: string,
    readonly file: FileHandle,
  ) {}

  async write(bytes: Uint8Array): Promise<void> {
    this.#hasher.update(bytes);
    for (let written = 0; written < bytes.length; ) {
      const rest = bytes.subarray(written);
      written += (await io(this.path, () => this.file.write(rest, 0, rest.length, this.offset + written)))
        .bytesWritten;
    }
    this.offset += bytes.length;
  }

  async commit(digest: string): Promise<void> {
    try {
      const target = this.layout.blobPath(digest);
      const actual = await this.#digestBy(splitDigest(digest).algorithm);
      if (actual !== digest) {
        throw new OverlaybdError(
          "E_CORRUPT",
          `blob ${digest}: the ${this.offset} bytes written have digest ${actual}`,
        );
      }
      await io(this.path, () => this.file.sync());
      await io(dirname(target), (path) => mkdir(path, { recursive: true }));
      await io(target, () => rename(this.path, target));
      await this.file.close();
      await syncDirectory(dirname(target));
    } catch (error) {
      await this.abort();
      throw error;
    }
  }

  /** What is rare is not computed on the way: which algorithm is wanted is said only now. */
  async #digestBy(algorithm: "sha256" | "sha512"): Promise<string> {
    if (algorithm === "sha256") return `sha256:${this.#hasher.digest("hex")}`;
    const hasher = new Bun.CryptoHasher(algorithm);
    for await (const chunk of Bun.file(this.path).stream()) hasher.update(chunk);
    return `${algorithm}:${hasher.digest("hex")}`;
  }

  async abort(): Promise<void> {
    await this.file.close().catch(() => {});
    await rm(this.path, { force: true });
  }
}

async function syncDirectory(path: string): Promise<void> {
  await io(path, async () => {
    const directory = await open(path, "r");
    try {
      await directory.sync();
    } finally {
      await directory.close();
    }
  });
}

/** Runs a file operation on `path`; failures become OverlaybdError E_IO naming it. */
async function io<T>(path: string, operation: (path: string) => Promise<T>): Promise<T> {
  try {
    return await operation(path);
  } catch (error) {
    throw new OverlaybdError("E_IO", `${path}: ${(error as Error).message}`, { cause: error });
  }
}

function ifMissing(error: OverlaybdError): undefined {
  const code = causeOf(error);
  if (code !== "ENOENT" && code !== "ENOTDIR") throw error;
}

function ifPresent(error: OverlaybdError): void {
  if (causeOf(error) !== "EEXIST") throw error;
}

function causeOf(error: OverlaybdError): unknown {
  return (error.cause as { code?: unknown } | undefined)?.code;
}
