/** What opening an image needs of the service config, `overlaybd.json` (image-config.md section 2). */
import { DEFAULT_CACHE_DIRECTORY, DEFAULT_REFILL_BYTES } from "../blob/cache.ts";
import type { Engine } from "../native/plan.ts";
import { Fields } from "./fields.ts";

export const DEFAULT_SERVICE_CONFIG = "/etc/overlaybd/overlaybd.json";

/** Largest refill size; a disk that is full leaves room in memory for only a few units. */
const MAX_REFILL_BYTES = 4 << 20;

export interface ServiceConfig {
  readonly cacheDirectory: string;
  /** Bytes fetched and kept together. */
  readonly refillBytes: number;
  /** How local files are read: 0 psync, 1 libaio, 2 posix aio, and ours: 3 io_uring. */
  readonly engine: Engine;
}

/**
 * Reads a service config. Without a path the one at the default place, or the defaults when there is none.
 * @throws OverlaybdError E_CONFIG naming file and key.
 */
export async function loadServiceConfig(path?: string): Promise<ServiceConfig> {
  if (path !== undefined) return decode(await Fields.load(path));
  const absent = !(await Bun.file(DEFAULT_SERVICE_CONFIG).exists());
  return decode(
    absent ? Fields.parse("{}", DEFAULT_SERVICE_CONFIG) : await Fields.load(DEFAULT_SERVICE_CONFIG),
  );
}

function decode(fields: Fields): ServiceConfig {
  const cache = fields.object("cacheConfig");
  const refillBytes = cache.unsigned("refillSize", DEFAULT_REFILL_BYTES);
  if (refillBytes < 4096 || refillBytes > MAX_REFILL_BYTES || (refillBytes & (refillBytes - 1)) !== 0) {
    throw cache.wrong(
      "refillSize",
      `must be a power of two from 4096 to ${MAX_REFILL_BYTES}, not ${refillBytes}`,
    );
  }
  // The legacy key counts only where `cacheConfig` says nothing about the kind of cache.
  const legacy = cache.string("cacheType") === "";
  return {
    cacheDirectory: legacy
      ? fields.string("registryCacheDir", cache.string("cacheDir", DEFAULT_CACHE_DIRECTORY))
      : cache.string("cacheDir", DEFAULT_CACHE_DIRECTORY),
    refillBytes,
    engine: fields.integer("ioEngine", 0, 0, 3) as Engine,
  };
}
