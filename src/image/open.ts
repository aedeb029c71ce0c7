/** From an image config, or a list of blobs, to everything that it takes to serve the virtual disk. */
import type { DownloadStats } from "../blob/background.ts";
import type { Blob, CacheStats } from "../blob/blob.ts";
import type { FileCache } from "../blob/cache.ts";
import type { DownloadTarget } from "../blob/download.ts";
import { openFileBlob } from "../blob/file.ts";
import { addStats, emptyStats } from "../blob/stats.ts";
import { OverlaybdError } from "../error.ts";
import { mergeSegments } from "../format/lsmt/merge.ts";
import type { Engine } from "../native/plan.ts";
import type { AccessOptions } from "../registry/access.ts";
import type { Repository } from "../registry/repository.ts";
import type { DownloadConfig } from "../service/config.ts";
import { dataLowers, type ImageConfig, type LowerConfig, localFile } from "./config.ts";
import { withDownload } from "./downloaded.ts";
import { type BlobLayer, openBlobLayer, type ReadObserver } from "./layer.ts";
import { type ReadLog, ReadRecorder } from "./read_log.ts";
import { withReadAhead } from "./readahead.ts";
import { Recording } from "./recording.ts";
import { blobOrigin, repositoryAt } from "./remote.ts";
import type { DiskTables, MissingRange } from "./tables.ts";
import { configuredTrace, type TraceUse } from "./trace_use.ts";
import { withPrefetch, withRecording } from "./traced.ts";
import { readUpper } from "./upper.ts";

/** As in the service config. */
const DEFAULT_CONCURRENCY = 16;
/** Layers opened at the same time (image-config.md section 1.1). */
const PARALLEL_OPENS = 32;

export interface ImageOptions {
  /** Records a trace or uses one, whatever the image says itself. */
  readonly trace?: TraceUse;
  /** Most requests at the same time for what a trace names; default 16. */
  readonly prefetchConcurrency?: number;
  /** Where blobs of registries are kept. */
  readonly cache: FileCache;
  /** How layers are completed in the background, unless the image config says it. */
  readonly download?: DownloadConfig;
  /** How registries are reached. */
  readonly access?: AccessOptions;
  /** How local files are read. */
  readonly engine?: Engine;
}

/** A writable layer: paths, and its virtual size in bytes. */
export interface UpperLayer {
  readonly data: string;
  readonly index: string;
  readonly size: number;
}

/** Opens the blob of one layer. */
export type BlobOpener = () => Promise<Blob>;

/** An image that can be served: `tables` is posted to who serves it, the rest stays on the main thread. */
export interface OpenImage {
  readonly tables: DiskTables;
  /** In the order of `tables.layers`. */
  readonly layers: readonly BlobLayer[];
  /** Makes bytes readable that `VirtualDisk.read` reported as missing or damaged. */
  fetch(range: MissingRange): Promise<void>;
  /** Begins to fetch what the image's trace names, if it has one, beside what is read. Ends with `close`. */
  prefetch(): void;
  /** Begins to complete layers in their own directories, if that is configured. Ends with `close`. */
  download(): void;
  stats(): ImageStats;
  /** Closes all blobs. Whoever serves the disk must have closed it. */
  close(): Promise<void>;
}

export interface ImageStats extends CacheStats {
  /** Bytes of all layers' blobs. */
  readonly imageBytes: number;
  /** What the background download has done, once it was begun. */
  readonly download?: DownloadStats;
}

/**
 * Opens the layers of an image config, locally or through the cache, and merges their indexes.
 * @throws OverlaybdError E_CONFIG, E_UNSUPPORTED (TurboOCI layers); E_CORRUPT and so on naming the layer.
 */
export async function openImage(config: ImageConfig, options: ImageOptions): Promise<OpenImage> {
  if (config.upper && (config.upper.target !== "" || config.upper.gzipIndex !== "")) {
    throw new OverlaybdError(
      "E_UNSUPPORTED",
      `${config.name}: a TurboOCI upper layer cannot be opened as a disk`,
    );
  }
  const upper = config.upper && { ...config.upper, size: (await readUpper(config.upper)).size };
  let repository: Promise<Repository> | undefined;
  const remote = () => {
    repository ??= repositoryAt(config.repoBlobUrl, config.name, options.access);
    return repository;
  };
  const targets: DownloadTarget[] = [];
  const openers = dataLowers(config).map((lower, i): BlobOpener => {
    return () => openLower(lower, `${config.name}: lowers[${i}]`, remote, options.cache, targets);
  });
  const trace = options.trace ?? (await configuredTrace(config));
  const image = await openStack(openers, trace, options, upper);
  const download = config.download ?? options.download;
  // A trace is of what is read from afar (cache-download-prefetch.md section 5.1).
  if (!download?.enable || targets.length === 0 || trace?.kind === "record") return image;
  return withDownload(image, targets, options.cache, download);
}

/**
 * Opens layers given bottom first as one disk, of which a trace is recorded, or used.
 * @throws OverlaybdError as `openLayers`; E_BUSY, E_IO when the trace cannot be recorded.
 */
export async function openStack(
  openers: readonly BlobOpener[],
  trace: TraceUse | undefined,
  options: Pick<ImageOptions, "engine" | "prefetchConcurrency">,
  upper?: UpperLayer,
): Promise<OpenImage> {
  if (trace?.kind === "record") {
    const recording = await Recording.begin(trace.path);
    try {
      const layers = await openLayers(openers, recording.log);
      return withRecording(assemble(layers, options.engine, upper), recording);
    } catch (error) {
      await recording.abandon();
      throw error;
    }
  }
  const image = assemble(await openLayers(openers), options.engine, upper);
  const { prefetchConcurrency = DEFAULT_CONCURRENCY } = options;
  return trace ? withPrefetch(image, trace, prefetchConcurrency) : withReadAhead(image);
}

async function openLower(
  lower: LowerConfig,
  name: string,
  remote: () => Promise<Repository>,
  cache: FileCache,
  targets: DownloadTarget[],
): Promise<Blob> {
  if (lower.targetFile !== "" || lower.targetDigest !== "") {
    throw new OverlaybdError("E_UNSUPPORTED", `${name} is a TurboOCI layer, which cannot be opened yet`);
  }
  const path = await localFile(lower);
  if (path !== null) return openFileBlob(path);
  if (lower.digest === "") {
    const tried = [lower.file, lower.dir].filter((place) => place !== "").join(" and in ");
    const where = tried === "" ? "has neither file, dir nor digest" : `is not at ${tried}, and has no digest`;
    throw new OverlaybdError("E_NOT_FOUND", `${name} ${where}`);
  }
  if (lower.size === 0) throw new OverlaybdError("E_CONFIG", `${name} is remote, but its size is not given`);
  const { digest, dir: directory } = lower;
  const origin = blobOrigin(await remote(), digest, lower.size, lower.verity || undefined);
  const blob = await cache.open(digest, origin, directory);
  if (directory !== "") targets.push({ digest, origin, directory, blob });
  return blob;
}

/**
 * Opens layers given bottom first, several at a time; returns them topmost first. If one fails, all are closed.
 * @param log remembers what opening them reads.
 * @throws OverlaybdError of the first that failed.
 */
export async function openLayers(openers: readonly BlobOpener[], log?: ReadLog): Promise<BlobLayer[]> {
  const layers = new Array<BlobLayer>(openers.length);
  const blobs: Blob[] = [];
  let next = 0;
  let failure: { error: unknown } | undefined;
  const work = async (): Promise<void> => {
    while (next < openers.length && !failure) {
      const i = next++;
      try {
        const blob = await openers[i]();
        blobs.push(blob);
        layers[openers.length - 1 - i] = await openIntact(blob, log && observer(log, i));
      } catch (error) {
        failure ??= { error };
      }
    }
  };
  await Promise.all(Array.from({ length: PARALLEL_OPENS }, work));
  if (!failure) return layers;
  await Promise.all(blobs.map((blob) => blob.close()));
  throw failure.error;
}

/** What was kept, or sent, damaged is fetched once more before the layer is called corrupt. */
async function openIntact(blob: Blob, note?: ReadObserver): Promise<BlobLayer> {
  try {
    return await openBlobLayer(blob, note);
  } catch (error) {
    if (!blob.kept || !(error instanceof OverlaybdError) || error.code !== "E_CORRUPT") throw error;
    await blob.kept.discard();
    return openBlobLayer(blob, note);
  }
}

/** Notes reads of layer `index`, counted from the bottom. */
function observer(log: ReadLog, index: number): ReadObserver {
  const recorder = new ReadRecorder(log, index);
  return (offset, length) => {
    recorder.begin();
    recorder.note(0, offset, length);
    recorder.commit();
  };
}

/** Puts layers (topmost first) and perhaps a writable one on top together. */
export function assemble(layers: readonly BlobLayer[], engine?: Engine, upper?: UpperLayer): OpenImage {
  const size = upper?.size || (layers.find((layer) => layer.content.size > 0)?.content.size ?? 0);
  // One blob may be several layers of an image.
  const cached = new Set(layers.flatMap(({ blob }) => blob.stats ?? []));
  return {
    tables: {
      size,
      index: mergeSegments(layers.map((layer) => layer.content.segments)),
      layers: layers.map((layer) => layer.disk),
      engine,
      upper: upper && { data: upper.data, index: upper.index },
    },
    layers,
    fetch: ({ layer, offset, length, damaged }) => layers[layer].blob.fetch(offset, length, damaged),
    prefetch: () => {},
    download: () => {},
    stats: () => ({
      ...[...cached].reduce(addStats, emptyStats()),
      imageBytes: layers.reduce((sum, { blob }) => sum + blob.size, 0),
    }),
    close: async () => {
      await Promise.all(layers.map(({ blob }) => blob.close()));
    },
  };
}
