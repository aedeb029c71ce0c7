/** `overlaybd convert`: turns an OCI image into an overlaybd image (upstream: `convertor`). */
import { consola } from "consola";
import { convert } from "../convert/convert.ts";
import type { Progress } from "../convert/image.ts";
import { OverlaybdError } from "../error.ts";
import { type AccessOptions, repositoryAccess } from "../registry/access.ts";
import { fixedCredentials } from "../registry/credentials/source.ts";
import { findCertificates } from "../registry/hosts/directory.ts";
import { parseReference, type Reference } from "../registry/reference.ts";
import type { TlsOptions } from "../registry/tls.ts";
import { loadServiceConfig } from "../service/config.ts";
import { accessArgs, accessOptions, PASSWORD_VARIABLE } from "./_access.ts";
import { defineCommand, type Values } from "./_command.ts";
import { interruptible } from "./_interrupt.ts";

const GIB = 2 ** 30;

export const command = defineCommand({
  meta: { name: "convert", description: "Convert an OCI image to an overlaybd image and push it" },
  args: {
    repository: {
      type: "string",
      alias: "r",
      required: true,
      description: "Repository HOST/PATH, or oci:DIRECTORY",
    },
    "input-tag": { type: "string", alias: "i", description: "Tag of the source image" },
    "input-digest": {
      type: "string",
      alias: "g",
      description: "Digest of the source image, when no tag is given",
    },
    "output-tag": { type: "string", alias: "o", description: "Tag of the converted image" },
    overlaybd: { type: "string", description: "The same as --output-tag, which it overrides" },
    to: { type: "string", description: "Push into this repository instead, HOST/PATH or oci:DIRECTORY" },
    ...accessArgs,
    username: {
      ...accessArgs.username,
      description: `USER, whose password is in the environment variable ${PASSWORD_VARIABLE}, or USER:PASSWORD, which other users of the machine can see; default: as the service config and Docker's configuration say`,
    },
    "cert-dir": {
      type: "string",
      multiple: true,
      description:
        "Directory with authorities (*.crt) and a client certificate (*.cert, *.key); may be repeated",
    },
    "client-cert": {
      type: "string",
      multiple: true,
      description: "Client certificate and its key, CERTFILE:KEYFILE",
    },
    oci: {
      type: "boolean",
      default: false,
      description: "OCI media types in the result instead of Docker's",
    },
    vsize: { type: "string", default: "64", description: "Size of the virtual disk in GiB" },
    dir: { type: "string", alias: "d", default: "tmp_conv", description: "Directory for temporary files" },
    verity: {
      type: "boolean",
      default: false,
      description: "Add a Merkle tree to every layer, which lazy reads are checked against (docs/verity.md)",
    },
    verbose: { type: "boolean", default: false, description: "Report every layer, not only to a terminal" },
    json: { type: "boolean", default: false, description: "Print the result as JSON" },
  },
  missing: [
    ...["fstype", "mkfs", "fastoci", "turboOCI", "db-str", "db-type", "concurrency-limit", "disable-sparse"],
    ...["referrer", "reserve", "no-upload", "dump-manifest"],
  ],
  async run({ args }) {
    const from = sourceReference(args);
    const outputTag = args.overlaybd || args["output-tag"];
    if (!outputTag) throw usage("output-tag is required, -o TAG");
    const open = repositoryAccess(await access(args));
    const target = `${args.to ?? args.repository}:${outputTag}`;
    const to = parseReference(target);
    const size = parseSize(args.vsize);
    const result = await interruptible(async (signal) =>
      convert({
        source: await open(from),
        input: from.digest ?? from.tag,
        target: await open(to, { create: true }),
        outputTag,
        family: args.oci ? "oci" : "docker",
        size,
        verity: args.verity,
        workFolder: args.dir,
        progress: args.verbose || process.stderr.isTTY ? showProgress : undefined,
        warn: (message) => consola.warn(message),
        signal,
      }),
    );
    const text = args.json ? JSON.stringify(result) : `converted to "${target}", digest: "${result.digest}"`;
    process.stdout.write(`${text}\n`);
  },
});

/** A tag wins over a digest, as it does upstream. */
function sourceReference(args: {
  repository: string;
  "input-tag"?: string;
  "input-digest"?: string;
}): Reference {
  const [tag, digest] = [args["input-tag"], args["input-digest"]];
  if (tag) return parseReference(`${args.repository}:${tag}`);
  if (digest) return parseReference(`${args.repository}@${digest}`);
  throw usage("one of input-tag [-i] or input-digest [-g] is required");
}

type AccessArgs = Values<typeof accessArgs> & {
  readonly "cert-dir": readonly string[];
  readonly "client-cert": readonly string[];
};

/** Other than our own commands, upstream's convertor takes a password in `--username`. */
async function access(args: AccessArgs): Promise<AccessOptions> {
  const service = await loadServiceConfig(args.service_config_path);
  const shown = args.username?.includes(":") ? fixedCredentials(args.username) : undefined;
  const options = accessOptions(service, shown ? { ...args, username: undefined } : args);
  const tls = await certificates(args, options.tls);
  return { ...options, tls, credentials: shown ?? options.credentials };
}

/** With those of `--cert-dir` and `--client-cert` (convertor.md section 2.3). */
async function certificates(args: AccessArgs, base: TlsOptions = {}): Promise<TlsOptions> {
  const found = await Promise.all(args["cert-dir"].map(findCertificates));
  const named = args["client-cert"].map((text) => {
    const [certificate, key, ...rest] = text.split(":");
    if (certificate && key && rest.length === 0) return { certificate, key };
    throw usage(`client cert ${text}: invalid format`);
  });
  const clients = [...named, ...found.flatMap(({ client }) => client ?? [])];
  if (clients.length > 1) throw usage("there are several client certificates, of which one can be used");
  return {
    ...base,
    authorities: [...(base.authorities ?? []), ...found.flatMap(({ authorities = [] }) => authorities)],
    client: clients[0] ?? base.client,
  };
}

function parseSize(text: string): number {
  if (!/^[1-9]\d{0,4}$/.test(text)) throw usage(`--vsize ${JSON.stringify(text)} is not a number of GiB`);
  return Number(text) * GIB;
}

const showProgress: Progress = ({ kind, image, number, count, sourceSize, size }) => {
  const mib = (bytes: number) => `${(bytes / 2 ** 20).toFixed(1)} MiB`;
  consola.info(
    `${image.digest.slice(7, 19)} layer ${number + 1}/${count} ${kind}: ${mib(sourceSize)} → ${mib(size)}`,
  );
};

function usage(message: string): OverlaybdError {
  return new OverlaybdError("E_USAGE", message);
}
