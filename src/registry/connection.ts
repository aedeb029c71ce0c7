/** From the hosts of a registry to the routes that its requests take. */
import { OverlaybdError } from "../error.ts";
import type { Accelerator } from "./accelerator.ts";
import { authorize } from "./authorization.ts";
import type { CredentialSource } from "./credentials/source.ts";
import { dial } from "./dial.ts";
import { Health } from "./health.ts";
import { capabilityFor, type RegistryHost, redirectTo, withHeaders } from "./hosts/host.ts";
import { chooseProxy, type ProxyChoice } from "./proxy.ts";
import { followRedirects } from "./redirect.ts";
import { type Exchange, fallBack, type Route } from "./routes.ts";
import type { TlsOptions } from "./tls.ts";
import { fetchTransport, type Transport } from "./transport.ts";

export interface ConnectionOptions {
  /** For all hosts; a host's own authorities come on top, its own client certificate comes first. */
  readonly tls: TlsOptions;
  readonly proxy: ProxyChoice;
  /** Milliseconds. */
  readonly stall: number;
  readonly userAgent?: string;
  readonly credentials: CredentialSource;
  readonly accelerator?: Accelerator;
  readonly warn: (message: string) => void;
}

/** What a repository sends its requests with (see `RemoteOptions`). */
export interface Connection {
  readonly transport: Transport;
  readonly exchange: Exchange;
}

/**
 * @param hosts in the order in which they are to be asked, the registry itself last
 * @param root of the registry's API: the beginning of the URLs of requests
 * @param namespace how mirrors know the registry
 * @throws OverlaybdError E_CONFIG when a certificate file is unusable
 */
export async function connectRegistry(
  hosts: readonly RegistryHost[],
  root: URL,
  namespace: string,
  options: ConnectionOptions,
): Promise<Connection> {
  const sends = await Promise.all(
    hosts.map(async (host) => redirectTo(host, root, namespace, await connectHost(host, options))),
  );
  const pushed = hosts.findIndex(({ capabilities }) => capabilities.includes("push"));
  const routes = hosts.map((host, i): Route => {
    const { capabilities, dialTimeout } = host;
    const own = i === hosts.length - 1;
    const target = proxyOf(host, options)(host.root) ?? host.root;
    return {
      name: own ? namespace : `the mirror ${host.root.origin} of ${namespace}`,
      // There is no use in giving up the last host sooner.
      health: new Health(own || dialTimeout === undefined ? undefined : () => dial(target, dialTimeout)),
      serves: (request) => {
        const wanted = capabilityFor(request);
        return wanted === "push" ? i === pushed : capabilities.includes(wanted);
      },
      send: sends[i],
    };
  });
  const { accelerator } = options;
  if (accelerator !== undefined) routes.unshift(accelerated(accelerator, routes[routes.length - 1]));
  return {
    transport: pushed < 0 ? refuse(namespace) : sends[pushed],
    exchange: fallBack(routes, options.warn),
  };
}

async function connectHost(host: RegistryHost, options: ConnectionOptions): Promise<Transport> {
  const { tls, stall, userAgent, credentials, accelerator } = options;
  const direct = await fetchTransport({
    tls: {
      insecure: tls.insecure === true || host.tls?.insecure === true,
      authorities: [...(tls.authorities ?? []), ...(host.tls?.authorities ?? [])],
      client: host.tls?.client ?? tls.client,
    },
    proxy: proxyOf(host, options),
    stall,
    userAgent,
  });
  const sending = withHeaders(host, accelerator?.apply(direct) ?? direct);
  return followRedirects(authorize(sending, host.root.origin, host.root.host, credentials));
}

function proxyOf({ proxy }: RegistryHost, options: ConnectionOptions): ProxyChoice {
  return proxy === undefined ? options.proxy : chooseProxy(proxy);
}

/** The first attempt at content of blobs goes through the accelerator. */
function accelerated({ name, health }: Accelerator, route: Route): Route {
  return {
    name,
    health,
    serves: (request) =>
      request.method === "GET" && request.url.pathname.includes("/blobs/") && (request.attempt ?? 1) === 1,
    send: (request) => route.send({ ...request, accelerated: true }),
  };
}

function refuse(namespace: string): Transport {
  return async ({ subject }) => {
    throw new OverlaybdError(
      "E_CONFIG",
      `${subject}: hosts.toml names no host of ${namespace} that takes pushes`,
    );
  };
}
