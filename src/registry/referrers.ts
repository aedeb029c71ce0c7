/**
 * Manifests that refer to another one by their subject (OCI distribution-spec, "Listing Referrers"), with the tag that
 * stands in for the API on registries that do not have it ("Referrers Tag Schema").
 */
import { OverlaybdError } from "../error.ts";
import type { RemoteRepository } from "./client.ts";
import {
  type Descriptor,
  encodeIndex,
  isIndexType,
  MediaType,
  parseDescriptor,
  parseIndex,
  parseManifest,
} from "./descriptor.ts";
import { splitDigest } from "./digest.ts";

const REFERRER_LIMIT = 10_000;

export async function fetchReferrers(
  repository: RemoteRepository,
  digest: string,
  artifactType?: string,
): Promise<Descriptor[]> {
  splitDigest(digest);
  const url = repository.url(`referrers/${digest}`);
  if (artifactType !== undefined) url.searchParams.set("artifactType", artifactType);
  const subject = `referrers of ${digest}`;
  let found: Descriptor[] | undefined;
  for await (const page of repository.pages(url, subject)) {
    const manifests = Array.isArray(page.manifests) ? page.manifests : [];
    found = [
      ...(found ?? []),
      ...manifests.map((value) => parseDescriptor(value, `${subject} in ${repository.name}`)),
    ];
    if (found.length > REFERRER_LIMIT) {
      throw new OverlaybdError("E_LIMIT", `${repository.name}: more than ${REFERRER_LIMIT} ${subject}`);
    }
  }
  found ??= await taggedReferrers(repository, digest);
  // Registries need not filter.
  return artifactType === undefined
    ? found
    : found.filter((referrer) => referrer.artifactType === artifactType);
}

/** After a manifest with a subject was pushed to a registry without the API: lists it in the subject's tag. */
export async function recordReferrer(
  repository: RemoteRepository,
  descriptor: Descriptor,
  bytes: Uint8Array,
): Promise<void> {
  const name = `manifest ${descriptor.digest} of ${repository.name}`;
  const pushed = referrerOf(descriptor, bytes, name);
  if (pushed === undefined) return;
  const { subject, referrer } = pushed;
  const present = await taggedReferrers(repository, subject.digest);
  if (present.some(({ digest }) => digest === descriptor.digest)) return;
  const index = encodeIndex({ mediaType: MediaType.ociIndex, manifests: [...present, referrer] });
  await repository.pushManifest(referrersTag(subject.digest), MediaType.ociIndex, index);
}

/** The subject of a manifest or index, and the descriptor under which it is listed as a referrer; undefined: it has none. */
export function referrerOf(
  descriptor: Descriptor,
  bytes: Uint8Array,
  name: string,
): { subject: Descriptor; referrer: Descriptor } | undefined {
  const document = isIndexType(descriptor.mediaType) ? parseIndex(bytes, name) : parseManifest(bytes, name);
  if (document.subject === undefined) return undefined;
  const { mediaType, digest, size } = descriptor;
  const artifactType =
    document.artifactType ?? ("config" in document ? document.config.mediaType : undefined);
  return {
    subject: document.subject,
    referrer: { mediaType, digest, size, artifactType, annotations: document.annotations },
  };
}

async function taggedReferrers(repository: RemoteRepository, digest: string): Promise<Descriptor[]> {
  try {
    const descriptor = await repository.resolve(referrersTag(digest));
    const index = parseIndex(
      await repository.manifest(descriptor),
      `referrers of ${digest} in ${repository.name}`,
    );
    return [...index.manifests];
  } catch (error) {
    if (error instanceof OverlaybdError && error.code === "E_NOT_FOUND") return [];
    throw error;
  }
}

function referrersTag(digest: string): string {
  return digest.replace(":", "-").slice(0, 128);
}
