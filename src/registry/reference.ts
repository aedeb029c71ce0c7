/**
 * References to images: `host[:port]/path[:tag][@digest]` in a registry, or `oci:DIRECTORY[:name][@digest]` in an OCI
 * image layout. As with other tools, the directory of the latter ends at its first colon; everything after it is the
 * `org.opencontainers.image.ref.name` of the image, by convention a tag, or `repository:tag`.
 */
import { OverlaybdError } from "../error.ts";
import { isDigest } from "./digest.ts";

export interface RegistryReference {
  readonly kind: "registry";
  /** Host the requests go to, with the port when one is given: `registry-1.docker.io`, `localhost:5000`. */
  readonly host: string;
  readonly repository: string;
  readonly tag?: string;
  readonly digest?: string;
}

export interface LayoutReference {
  readonly kind: "layout";
  readonly directory: string;
  readonly tag?: string;
  readonly digest?: string;
}

export type Reference = RegistryReference | LayoutReference;

const DOCKER_HUB_HOST = "registry-1.docker.io";
const DEFAULT_TAG = "latest";

/** Grammar of a repository name (OCI distribution-spec, "Pulling manifests"). It cannot hold `..` or an empty part. */
const REPOSITORY = /^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$/;
/** Grammar of a tag, ibid. */
const TAG = /^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$/;
const HOST = /^(\[[0-9a-fA-F:.]+\]|[a-zA-Z0-9]([a-zA-Z0-9.-]*[a-zA-Z0-9])?)(:[0-9]{1,5})?$/;
const REF_NAME = /^[a-zA-Z0-9][a-zA-Z0-9._:@/+-]{0,511}$/;

export function isRepositoryName(text: string): boolean {
  return text.length <= 255 && REPOSITORY.test(text);
}

export function isTag(text: string): boolean {
  return TAG.test(text);
}

/**
 * Parses a reference. Without tag and digest a registry reference means `latest`; names without a host mean Docker Hub.
 * @throws OverlaybdError E_USAGE
 */
export function parseReference(text: string): Reference {
  return text.startsWith("oci:") ? parseLayout(text) : parseRegistry(text);
}

function parseLayout(text: string): LayoutReference {
  const { rest, digest } = splitDigestSuffix(text.slice("oci:".length), text);
  const colon = rest.indexOf(":");
  const directory = colon < 0 ? rest : rest.slice(0, colon);
  const tag = colon < 0 ? undefined : rest.slice(colon + 1);
  if (directory === "")
    throw invalid(text, "the directory of an image layout is missing: oci:DIRECTORY[:TAG]");
  if (tag !== undefined && !REF_NAME.test(tag))
    throw invalid(text, `${JSON.stringify(tag)} is not a valid tag`);
  return { kind: "layout", directory, tag, digest };
}

function parseRegistry(text: string): RegistryReference {
  const { rest, digest } = splitDigestSuffix(text, text);
  const slash = rest.indexOf("/");
  const first = slash < 0 ? "" : rest.slice(0, slash);
  // The rule of every Docker-compatible tool: only a dot, a colon or "localhost" make the first part a host.
  const named = first.includes(".") || first.includes(":") || first === "localhost";
  const path = named ? rest.slice(slash + 1) : rest;
  const colon = path.lastIndexOf(":");
  const name = colon < 0 ? path : path.slice(0, colon);
  const tag = colon < 0 ? undefined : path.slice(colon + 1);
  const { host, repository } = normalise(named ? first : "docker.io", name);

  if (!HOST.test(host)) throw invalid(text, `${JSON.stringify(host)} is not a registry host`);
  if (!isRepositoryName(repository))
    throw invalid(text, `${JSON.stringify(repository)} is not a repository name`);
  if (tag !== undefined && !isTag(tag)) throw invalid(text, `${JSON.stringify(tag)} is not a tag`);
  return {
    kind: "registry",
    host,
    repository,
    tag: tag ?? (digest === undefined ? DEFAULT_TAG : undefined),
    digest,
  };
}

function normalise(host: string, name: string): { host: string; repository: string } {
  if (host !== "docker.io" && host !== "index.docker.io" && host !== DOCKER_HUB_HOST)
    return { host, repository: name };
  return { host: DOCKER_HUB_HOST, repository: name.includes("/") ? name : `library/${name}` };
}

function splitDigestSuffix(text: string, whole: string): { rest: string; digest?: string } {
  const at = text.lastIndexOf("@");
  if (at < 0) return { rest: text };
  const digest = text.slice(at + 1);
  if (!isDigest(digest)) throw invalid(whole, `${JSON.stringify(digest)} is not a sha256 or sha512 digest`);
  return { rest: text.slice(0, at), digest };
}

/** Writes a reference as `parseReference` reads it. */
export function formatReference(reference: Reference): string {
  const place =
    reference.kind === "layout" ? `oci:${reference.directory}` : `${reference.host}/${reference.repository}`;
  const tag = reference.tag === undefined ? "" : `:${reference.tag}`;
  const digest = reference.digest === undefined ? "" : `@${reference.digest}`;
  return `${place}${tag}${digest}`;
}

function invalid(text: string, why: string): OverlaybdError {
  return new OverlaybdError("E_USAGE", `invalid image reference ${JSON.stringify(text)}: ${why}`);
}
