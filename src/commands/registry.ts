/** `overlaybd registry DIR`: serves an OCI image layout directory as a registry. */
import { consola } from "consola";
import { OverlaybdError } from "../error.ts";
import { serveRegistry } from "../registry/server.ts";
import { defineCommand } from "./_command.ts";

export const command = defineCommand({
  meta: {
    name: "registry",
    description: "Serve an OCI image layout directory as a registry (OCI distribution API, pull and push)",
  },
  args: {
    directory: {
      type: "positional",
      description: "Image layout; made when it does not exist",
      required: true,
    },
    listen: { type: "string", description: "Address and port to listen on", default: "127.0.0.1:5000" },
    "tls-cert": { type: "string", description: "Serve TLS with this certificate (PEM file)" },
    "tls-key": { type: "string", description: "Key of the certificate (PEM file)" },
    "read-only": { type: "boolean", description: "Refuse pushes", default: false },
  },
  async run({ args }) {
    const server = await serveRegistry({
      directory: args.directory,
      ...parseAddress(args.listen),
      tls: parseTls(args["tls-cert"], args["tls-key"]),
      readOnly: args["read-only"],
    });
    process.stdout.write(`serving ${args.directory} at ${server.url}\n`);
    await new Promise<void>((resolve) => {
      process.once("SIGTERM", resolve);
      process.once("SIGINT", resolve);
    });
    await server.stop();
    const { requests, blobRequests, blobBytes } = server.stats;
    consola.info(
      `stopped after ${requests} requests, ${blobRequests} of them for ${blobBytes} bytes of blobs`,
    );
  },
});

function parseAddress(text: string): { hostname: string; port: number } {
  const match = /^(?:\[([^\]]+)\]|([^:]+)):(\d{1,5})$/.exec(text);
  if (match === null || Number(match[3]) > 65535) {
    throw new OverlaybdError("E_USAGE", `--listen ${JSON.stringify(text)} is not ADDRESS:PORT`);
  }
  return { hostname: match[1] ?? match[2], port: Number(match[3]) };
}

function parseTls(certificate?: string, key?: string): { certificate: string; key: string } | undefined {
  if (certificate === undefined && key === undefined) return undefined;
  if (certificate !== undefined && key !== undefined) return { certificate, key };
  throw new OverlaybdError("E_USAGE", "--tls-cert and --tls-key go together");
}
