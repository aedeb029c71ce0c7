/** Blobs of registries as the cache and the image config name them. */
import type { RangeOrigin } from "../blob/origin.ts";
import { OverlaybdError } from "../error.ts";
import { type AccessOptions, repositoryAccess } from "../registry/access.ts";
import { isRepositoryName } from "../registry/reference.ts";
import type { Repository } from "../registry/repository.ts";

/** Lets the cache fetch a blob of `repository`. */
export function blobOrigin(repository: Repository, digest: string, size: number): RangeOrigin {
  return {
    name: `${repository.name}@${digest}`,
    size,
    readRange: (offset, length) => repository.blobRange(digest, offset, length, size),
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
      `${name}: repoBlobUrl is ${JSON.stringify(repoBlobUrl)}, expected ${wanted}`,
    );
  }
  const [, scheme, host, repository] = match;
  return repositoryAccess({ ...access, plain: scheme === "http" })({ kind: "registry", host, repository });
}
