/** `overlaybd convert`: turns an OCI image into an overlaybd image (upstream: `convertor`). */
import { mkdir } from "node:fs/promises";
import { defineCommand } from "citty";
import { consola } from "consola";
import { convert } from "../convert/convert.ts";
import type { Progress } from "../convert/image.ts";
import { OverlaybdError } from "../error.ts";
import { repositoryAccess } from "../registry/access.ts";
import { fixedCredentials } from "../registry/credentials.ts";
import { parseReference, type Reference } from "../registry/reference.ts";

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
    username: { type: "string", alias: "u", description: "USER:PASSWORD; default: Docker's credentials" },
    plain: { type: "boolean", default: false, description: "Plain HTTP instead of TLS" },
    insecure: { type: "boolean", default: false, description: "Do not verify TLS certificates" },
    "root-ca": {
      type: "string",
      description: "PEM file of a certificate authority to trust besides the system's",
    },
    oci: {
      type: "boolean",
      default: false,
      description: "OCI media types in the result instead of Docker's",
    },
    vsize: { type: "string", default: "64", description: "Size of the virtual disk in GiB" },
    dir: { type: "string", alias: "d", default: "tmp_conv", description: "Directory for temporary files" },
    json: { type: "boolean", default: false, description: "Print the result as JSON" },
  },
  async run({ args }) {
    const input = args["input-tag"] ?? args["input-digest"];
    if (input === undefined) throw usage("one of input-tag [-i] or input-digest [-g] is required");
    const outputTag = args.overlaybd ?? args["output-tag"];
    if (outputTag === undefined) throw usage("output-tag is required, -o TAG");
    const open = repositoryAccess({
      plain: args.plain,
      tls: { insecure: args.insecure, authorities: args["root-ca"] === undefined ? [] : [args["root-ca"]] },
      credentials: args.username === undefined ? undefined : fixedCredentials(args.username),
    });
    const from = within(args.repository, input);
    const to = within(args.to ?? args.repository, outputTag);
    await mkdir(args.dir, { recursive: true });
    const result = await convert({
      source: await open(from),
      input: from.digest ?? from.tag,
      target: await open(to, { create: true }),
      outputTag,
      family: args.oci ? "oci" : "docker",
      size: parseSize(args.vsize),
      workFolder: args.dir,
      progress: showProgress,
      warn: (message) => consola.warn(message),
    });
    if (args.json) process.stdout.write(`${JSON.stringify(result)}\n`);
    else consola.log(`converted to "${args.to ?? args.repository}:${outputTag}", digest: "${result.digest}"`);
  },
});

/** The reference of `target`, a tag or digest, in a repository given by name. */
function within(repository: string, target: string): Reference {
  return parseReference(`${repository}${target.includes(":") ? "@" : ":"}${target}`);
}

function parseSize(text: string): number {
  if (!/^[1-9]\d{0,4}$/.test(text)) throw usage(`--vsize ${JSON.stringify(text)} is not a number of GiB`);
  return Number(text) * GIB;
}

const showProgress: Progress = ({ kind, image, number, count, sourceSize, size }) => {
  if (!process.stderr.isTTY) return;
  const mib = (bytes: number) => `${(bytes / 2 ** 20).toFixed(1)} MiB`;
  consola.info(
    `${image.digest.slice(7, 19)} layer ${number + 1}/${count} ${kind}: ${mib(sourceSize)} → ${mib(size)}`,
  );
};

function usage(message: string): OverlaybdError {
  return new OverlaybdError("E_USAGE", message);
}
