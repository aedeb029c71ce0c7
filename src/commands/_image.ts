/** Options of every command that opens an image. */
import type { ImageOptions } from "../image/open.ts";
import { loadServiceConfig } from "../service/config.ts";
import { accessArgs, accessOptions } from "./_access.ts";
import { configuredCache } from "./_cache.ts";
import type { Definitions, Values } from "./_command.ts";

export const imageArgs = {
  ...accessArgs,
  "cache-dir": {
    type: "string",
    description: "Keep what is fetched there, whatever the service config says",
  },
} as const satisfies Definitions;

type ImageArgs = Partial<Values<typeof imageArgs>>;

/** @throws OverlaybdError E_CONFIG */
export async function imageOptions(args: ImageArgs): Promise<ImageOptions> {
  const service = await loadServiceConfig(args.service_config_path);
  return {
    cache: configuredCache(service.cache, args["cache-dir"]),
    download: service.download,
    engine: service.engine,
    prefetchConcurrency: service.prefetchConcurrency,
    access: { ...accessOptions(service, args), readDeadline: service.readDeadline * 1000 },
  };
}
