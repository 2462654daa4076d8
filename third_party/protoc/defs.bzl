"""Python messages and gRPC stubs from protos."""

def _py_proto_sources_impl(ctx):
    sources = []
    stubs = []
    for proto in ctx.files.srcs:
        stem = proto.basename[:-len(".proto")]
        sources.append(ctx.actions.declare_file(stem + "_pb2.py"))
        sources.append(ctx.actions.declare_file(stem + "_pb2_grpc.py"))
        stubs.append(ctx.actions.declare_file(stem + "_pb2.pyi"))
    ctx.actions.run(
        executable = ctx.executable._generate,
        arguments = [ctx.workspace_name, ctx.bin_dir.path] + [proto.path for proto in ctx.files.srcs],
        inputs = ctx.files.srcs,
        outputs = sources + stubs,
        mnemonic = "PyProto",
        progress_message = "Generating Python of %s" % ctx.label,
    )
    return [
        DefaultInfo(files = depset(sources)),
        OutputGroupInfo(stubs = depset(stubs)),
    ]

_py_proto_sources = rule(
    implementation = _py_proto_sources_impl,
    attrs = {
        "srcs": attr.label_list(allow_files = [".proto"], mandatory = True),
        "_generate": attr.label(
            cfg = "exec",
            default = "//third_party/protoc:generate",
            executable = True,
        ),
    },
)

def py_proto_library(name, srcs, deps, visibility):
    """Messages and gRPC stubs of protos in this package, as finecut.<package>.<proto>_pb2 and _pb2_grpc.

    :<name>_stubs holds the type stubs, :<name>_sources the generated modules.
    """
    _py_proto_sources(name = name + "_sources", srcs = srcs, visibility = visibility)
    native.filegroup(
        name = name + "_stubs",
        srcs = [":%s_sources" % name],
        output_group = "stubs",
        visibility = visibility,
    )
    native.py_library(
        name = name,
        srcs = [":%s_sources" % name] + native.glob(["__init__.py"]),
        visibility = visibility,
        deps = deps,
    )
