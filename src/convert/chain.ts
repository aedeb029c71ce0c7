/** Chain ids (OCI image-spec, config.md "Layer ChainID") and the layer UUIDs that are made of them. */
import { createHash } from "node:crypto";

/** The chain id of each layer, bottom first, from the diff ids of all layers. */
export function chainIds(diffIds: readonly string[]): string[] {
  const chain: string[] = [];
  for (const diffId of diffIds) {
    const below = chain.at(-1);
    chain.push(
      below === undefined
        ? diffId
        : `sha256:${createHash("sha256").update(`${below} ${diffId}`).digest("hex")}`,
    );
  }
  return chain;
}

/** The UUID of a converted layer: the first 32 hex digits of its chain id, grouped 8-4-4-4-12 (convertor.md 4.1). */
export function layerUuid(chainId: string): string {
  const hex = chainId.slice(chainId.indexOf(":") + 1);
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20, 32)].join(
    "-",
  );
}
