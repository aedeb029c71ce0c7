declare module "*.so" {
  /** Path of the embedded file, readable by node:fs. */
  const path: string;
  export default path;
}
