/** Small images for the registry tests. */
import { encodeManifest, MediaType } from "../../src/registry/descriptor.ts";
import { digestOf } from "../../src/registry/digest.ts";
import type { Repository } from "../../src/registry/repository.ts";

/** Reproducible bytes without pattern (xorshift32). */
export function noise(length: number, seed: number): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(length);
  let state = seed | 1;
  for (let position = 0; position < length; position++) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    bytes[position] = state;
  }
  return bytes;
}

export function describeBytes(bytes: Uint8Array, mediaType: string = MediaType.ociLayer) {
  return { mediaType, digest: digestOf(bytes), size: bytes.length };
}

export const config = new TextEncoder().encode(
  '{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}',
);

/** Bytes of a manifest with `config` and one layer. */
export function manifestOf(layer: Uint8Array, extra: object = {}): Uint8Array {
  return encodeManifest({
    mediaType: MediaType.ociManifest,
    config: describeBytes(config, MediaType.ociConfig),
    layers: [describeBytes(layer)],
    ...extra,
  });
}

/** Pushes an image with one layer and returns the descriptor of its manifest. */
export async function pushImage(
  repository: Repository,
  tag: string | undefined,
  layer: Uint8Array,
  extra: object = {},
) {
  for (const bytes of [config, layer])
    await repository.pushBlob(describeBytes(bytes), new Blob([Buffer.from(bytes)]));
  return repository.pushManifest(tag, MediaType.ociManifest, manifestOf(layer, extra));
}
