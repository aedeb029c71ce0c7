/**
 * A peer-to-peer engine on this machine that fetches a URL appended to its own address: upstream's `p2pConfig`
 * (image-config.md section 4.5). It is given requests for content of blobs, with their headers; tokens and names are
 * none of its business.
 */
import { dial } from "./dial.ts";
import { Health } from "./health.ts";
import {
  describe,
  fetchTransport,
  HttpResponse,
  type Transport,
  type TransportOptions,
} from "./transport.ts";

/** Milliseconds to connect to it; it is on this machine or close. */
const DIAL_MS = 1000;

export interface Accelerator {
  readonly name: string;
  readonly health: Health;
  /** Sends the requests that are marked for it through it, all others by `direct`. */
  apply(direct: Transport): Transport;
}

/** @param address `http://host:port/path` */
export async function openAccelerator(
  address: URL,
  options: Pick<TransportOptions, "stall" | "userAgent">,
): Promise<Accelerator> {
  const prefix = address.href.replace(/\/$/, "");
  const transport = await fetchTransport(options);
  return {
    name: `the P2P accelerator ${describe(address)}`,
    health: new Health(() => dial(address, DIAL_MS)),
    apply: (direct) => async (request) => {
      if (request.accelerated !== true) return direct(request);
      const answer = await transport({ ...request, url: new URL(`${prefix}/${request.url.href}`) });
      // What is relative in the answer is relative to the URL that it is the answer for.
      return new HttpResponse(request, answer.response, answer.watch);
    },
  };
}
