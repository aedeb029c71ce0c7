/** Blobs of registries as the cache and the image config name them. */
import type { RangeOrigin } from "../blob/origin.ts";
import { OverlaybdError } from "../error.ts";
import { parseVerity } from "../format/verity/descriptor.ts";
import { type AccessOptions, repositoryAccess } from "../registry/access.ts";
import { isRepositoryName } from "../registry/reference.ts";
import type { Repository } from "../registry/repository.ts";

/**
 * Lets the cache fetch a blob of `repository`.
 * @param verity what is said of the Merkle tree in the blob (see `parseVerity`), if anything is.
 * @throws OverlaybdError E_CORRUPT, E_UNSUPPORTED, E_LIMIT when that is wrong.
 */
export function blobOrigin(
  repository: Repository,
  digest: string,
  size: number,
  verity?: string,
): RangeOrigin {
  const name = `${repository.name}@${digest}`;
  return {
    name,
    size,
    readRange: (offset, length, check) => repository.blobRange(digest, offset, length, size, check),
    readPieces: (offset, length, piece) => repository.blobPieces(digest, offset, length, piece, size),
    verity: verity === undefined ? undefined : parseVerity(verity, size, name),
  };
}

/**
 * The repository that an image config's `repoBlobUrl` points into; its scheme decides between TLS and plain HTTP.
 * @param name what to call the config in errors.
 * @throws OverlaybdError E_CONFIG
 */
export function repositoryAt(
  repoBlobUrl: string,
  name: string,
  access: AccessOptions = {},
): Promise<Repository> {
  const match = /^(https?):\/\/([^/@?#]+)\/v2\/([^?#]+)\/blobs\/?$/.exec(repoBlobUrl);
  if (!match || !isRepositoryName(match[3])) {
    const wanted = "https://HOST/v2/REPOSITORY/blobs";
    throw new OverlaybdError(
      "E_CONFIG",
      `${name}: repoBlobUrl is ${JSON.stringify(withoutLogin(repoBlobUrl))}, expected ${wanted}`,
    );
  }
  const [, scheme, host, repository] = match;
  return repositoryAccess({ ...access, plain: scheme === "http" })({ kind: "registry", host, repository });
}

/** User names and passwords do not belong into a URL; where they are nevertheless, nobody else has to read them. */
function withoutLogin(url: string): string {
  return url.replace(/\/\/[^/]*@/, "//***@");
}
