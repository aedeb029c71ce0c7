/** Options of every command that opens an image. */
import type { ImageOptions } from "../image/open.ts";
import { loadServiceConfig } from "../service/config.ts";
import { configuredCache } from "./_cache.ts";
import type { Definitions, Values } from "./_command.ts";

export const imageArgs = {
  service_config_path: {
    type: "string",
    description:
      "Service config, for cache directory and I/O engine (/etc/overlaybd/overlaybd.json, if there is one)",
  },
  "cache-dir": {
    type: "string",
    description: "Keep what is fetched there, whatever the service config says",
  },
  plain: { type: "boolean", description: "Use http rather than https for registries", default: false },
  insecure: { type: "boolean", description: "Do not verify registries' TLS certificates", default: false },
  "root-ca": {
    type: "string",
    multiple: true,
    description: "Trust this certificate authority too (PEM file); may be repeated",
  },
} as const satisfies Definitions;

type ImageArgs = Partial<Values<typeof imageArgs>>;

/** @throws OverlaybdError E_CONFIG */
export async function imageOptions(args: ImageArgs): Promise<ImageOptions> {
  const service = await loadServiceConfig(args.service_config_path);
  return {
    cache: configuredCache(service.cache, args["cache-dir"]),
    engine: service.engine,
    access: {
      plain: args.plain,
      readDeadline: service.readDeadline * 1000,
      tls: { insecure: args.insecure, authorities: args["root-ca"] },
    },
  };
}
