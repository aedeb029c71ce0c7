/**
 * Follows redirects (RFC 9110 section 15.4), which registries use to hand blobs out from object stores, and remembers
 * where those of GET requests led to. The layers below decide by the URL of each request whether it gets credentials, so
 * a foreign origin never sees any.
 */
import { lifetimeOf, type ResolvedUrl, ResolvedUrls } from "./resolved.ts";
import type { HttpRequest, HttpResponse, Transport } from "./transport.ts";

const MOST_REDIRECTS = 10;
/** What object stores say of a URL whose time is over, or whose object has moved. */
const STALE: ReadonlySet<number> = new Set([400, 401, 403, 404, 410]);

export function followRedirects(next: Transport): Transport {
  const resolved = new ResolvedUrls();

  async function follow(request: HttpRequest): Promise<HttpResponse> {
    let current = request;
    let lifetime = Number.POSITIVE_INFINITY;
    for (let hops = 0; ; hops++) {
      const response = await next(current);
      const location = response.header("location");
      if (!isRedirect(response.status) || location === undefined) {
        if (hops > 0 && request.method === "GET" && response.response.ok)
          resolved.set(request.url, current.url, lifetime);
        return response;
      }
      response.discard();
      if (hops === MOST_REDIRECTS)
        throw response.error("E_REGISTRY", `more than ${MOST_REDIRECTS} redirects`);
      current = redirected(current, response, location);
      lifetime = Math.min(lifetime, lifetimeOf(current.url, dateOf(response)));
    }
  }

  /** By a URL that was resolved before; undefined when that has become stale. */
  async function shortcut(request: HttpRequest, known: ResolvedUrl): Promise<HttpResponse | undefined> {
    try {
      const response = await next({ ...request, url: known.url });
      if (response.response.ok) return response;
      resolved.drop(request.url, known);
      if (!STALE.has(response.status) && !isRedirect(response.status)) return response;
      response.discard();
      return undefined;
    } catch (error) {
      // The next attempt may be sent to another store.
      resolved.drop(request.url, known);
      throw error;
    }
  }

  return async (request) => {
    const known = request.method === "GET" ? resolved.get(request.url) : undefined;
    return (known && (await shortcut(request, known))) ?? follow(request);
  };
}

function dateOf(response: HttpResponse): number {
  const date = Date.parse(response.header("date") ?? "");
  return Number.isNaN(date) ? Date.now() : date;
}

function isRedirect(status: number): boolean {
  return status === 301 || status === 302 || status === 303 || status === 307 || status === 308;
}

function redirected(request: HttpRequest, response: HttpResponse, location: string): HttpRequest {
  const reading = request.method === "GET" || request.method === "HEAD";
  if (!reading && response.status !== 307 && response.status !== 308) {
    throw response.error(
      "E_REGISTRY",
      `a ${request.method} cannot follow a redirect with status ${response.status}`,
    );
  }
  return { ...request, url: resolveLocation(response, location) };
}

/**
 * The URL a Location field names, which may be relative.
 * @throws RequestError E_REGISTRY when it is malformed, not HTTP, or leaves TLS
 */
export function resolveLocation(response: HttpResponse, location: string): URL {
  const from = response.request.url;
  const to = URL.parse(location, from.href);
  if (to === null || (to.protocol !== "https:" && to.protocol !== "http:")) {
    throw response.error("E_REGISTRY", "the answer's Location is not an HTTP URL");
  }
  if (from.protocol === "https:" && to.protocol === "http:") {
    throw response.error("E_REGISTRY", `the answer's Location leaves TLS for ${to.origin}`);
  }
  // User info would become an Authorization field that was never ours to send.
  to.username = "";
  to.password = "";
  to.hash = "";
  return to;
}
