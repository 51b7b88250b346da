import json, re, subprocess, sys, tempfile
from pathlib import Path
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from collections import Counter
import torch
from snipkern.triton_kernels import spmm_bsr as T
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
NAMES={torch.float16:"fp16",torch.bfloat16:"bf16",torch.float32:"fp32",torch.float64:"fp64"}
def run(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
def compile_for(arch, tuned, dtype, constants, config, aligned=("x","values","y","a","b","out","rows","cols","bias","batch","nnz")):
    k=tuned.kernel
    constants={**constants,**config.kwargs}
    types={}
    for n in k.arg_names:
        if n in constants: types[n]="constexpr"
        elif n=="topology": types[n]="*i32"
        elif n in ("x","values","y","a","b","out","bias"): types[n]="*"+NAMES[dtype]
        else: types[n]="i32"
    attrs={(i,): [["tt.divisibility",16]] for i,n in enumerate(k.arg_names) if n in aligned and types[n]!="constexpr"}
    src=ASTSource(fn=k,signature=types,constexprs=constants,attrs=attrs)
    return triton.compile(src, target=GPUTarget("cuda",arch,32), options={"num_warps":config.num_warps,"num_stages":config.num_stages})
def info(c):
    with tempfile.NamedTemporaryFile(suffix=".cubin") as f:
        f.write(c.asm["cubin"]); f.flush()
        use=run(TOOLS/"cuobjdump","-res-usage",f.name)
        sass=run(TOOLS/"nvdisasm","-c",f.name)
    ops=Counter(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+ )?\s*([A-Z][A-Z0-9_.]+)", sass, re.M))
    return dict(re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)",use)), ops, sass
