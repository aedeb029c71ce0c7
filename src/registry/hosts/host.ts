/** A host that serves a registry's content: the registry itself, or a mirror of it. */
import type { TlsOptions } from "../tls.ts";
import type { HttpRequest, Transport } from "../transport.ts";

/**
 * What a host is trusted with: handing out content whose digest is known, saying which content a tag means, taking
 * uploads (containerd's hosts.toml).
 */
export type Capability = "pull" | "resolve" | "push";

export interface RegistryHost {
  /** Root of its API, without a slash at the end: `https://host[:port]/v2`. */
  readonly root: URL;
  readonly capabilities: readonly Capability[];
  readonly tls?: TlsOptions;
  /** Sent with each request to it. */
  readonly headers?: Readonly<Record<string, string>>;
  /** HTTP proxy in place of everybody else's. */
  readonly proxy?: string;
  /** Milliseconds within which it has to take a connection. */
  readonly dialTimeout?: number;
}

/** What it takes to answer a request. */
export function capabilityFor(request: HttpRequest): Capability {
  const { method, url, scopes = [] } = request;
  // HEAD of a blob asks whether it still has to be pushed.
  if (method === "HEAD" && url.pathname.includes("/blobs/")) return "push";
  if (scopes.some((scope) => scope.endsWith("push"))) return "push";
  return /\/(blobs|manifests)\/[a-z0-9]+:[0-9a-f]+$/.test(url.pathname) ? "pull" : "resolve";
}

/**
 * Takes requests to the API at `root` to that of `host` instead; others pass unchanged. A mirror is told which registry is
 * meant (`ns`, as containerd does).
 */
export function redirectTo(host: RegistryHost, root: URL, namespace: string, next: Transport): Transport {
  const mirror = host.root.host !== root.host;
  const base = host.root.href.replace(/\/$/, "");
  // The part of the root's path that belongs to the repository's name on that host.
  const prefix = /^\/v2\/(.+)$/.exec(host.root.pathname)?.[1];
  return (request) => {
    if (!request.url.href.startsWith(`${root.href}/`)) return next(request);
    const url = new URL(base + request.url.href.slice(root.href.length));
    if (mirror) url.searchParams.set("ns", namespace);
    const scopes = prefix === undefined ? request.scopes : request.scopes?.map(prefixed);
    return next({ ...request, url, scopes });
  };

  function prefixed(scope: string): string {
    return scope.replace(/^repository:/, `repository:${prefix}/`);
  }
}

/** Adds the host's own headers to the requests to it. */
export function withHeaders({ root, headers }: RegistryHost, next: Transport): Transport {
  if (headers === undefined) return next;
  return (request) =>
    next(
      request.url.origin === root.origin
        ? { ...request, headers: { ...headers, ...request.headers } }
        : request,
    );
}
