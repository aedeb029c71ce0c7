/** The cache that the service config describes. */
import { consola } from "consola";
import { FileCache } from "../blob/cache.ts";
import type { CacheConfig } from "../service/config.ts";

/** @param directory instead of the config's. */
export function configuredCache(config: CacheConfig, directory = config.directory): FileCache {
  if (config.type === "ocf") {
    consola.warn(`cacheType "ocf" is not offered: the file cache in ${directory} is used instead`);
  }
  const { refillBytes: unit, capacity } = config;
  return new FileCache(directory, { unit, capacity, inLayers: config.type === "download" });
}
